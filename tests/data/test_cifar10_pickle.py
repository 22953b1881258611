"""CIFAR-10's Python pickles: as Python 2 wrote them, and as an attacker would."""

import os
import pickle
import struct

import numpy as np
import pytest
import torch

from cdn.data import load_dataset
from cdn.errors import DataError

NAMES = b"airplane automobile bird cat deer dog frog horse ship truck".split()
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)


def text(value):
    """Encode a Python 2 string."""
    length = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
    return length + value


def number(value):
    return b"J" + struct.pack("<i", value)


def items(values):
    return b"](" + b"".join(values) + b"e"


def array(pixels, shape=None, dtype=b"u1", raw=None, fortran=False):
    """Encode an array as NumPy under Python 2 did."""
    rows, columns = shape or pixels.shape
    kind = (
        b"cnumpy\ndtype\n"
        + text(dtype)
        + b"K\x00K\x01\x87R"
        + b"(K\x03"
        + text(b"|")
        + b"NNN"
        + number(-1) * 2
        + b"K\x00tb"
    )
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    raw = pixels.tobytes("F" if fortran else "C") if raw is None else raw
    order = b"\x88" if fortran else b"\x89"
    return empty + b"(K\x01" + number(rows) + number(columns) + b"\x86" + kind + order + text(raw) + b"tb"


def python2(**entries):
    """Encode a dictionary with protocol 2 as Python 2 did."""
    return b"\x80\x02}(" + b"".join(text(key.encode()) + value for key, value in entries.items()) + b"u."


def batch(pixels=PIXELS, labels=(1, 9, 0)):
    return python2(
        batch_label=text(b"training batch 1 of 5"),
        labels=items(map(number, labels)),
        data=array(pixels),
        filenames=items([text(b"leptodactylus.png")]),
    )


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    (place / "data_batch_1").write_bytes(batch())
    (place / "test_batch").write_bytes(batch(PIXELS[:2], (4, 5)))
    (place / "batches.meta").write_bytes(python2(num_vis=number(3072), label_names=items(map(text, NAMES))))
    return place


def refused(folder, content, message):
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=f"data_batch_1: .*{message}"):
        load_dataset("cifar10", folder)


def test_the_written_batch_is_what_numpy_itself_reads():
    content = pickle.loads(batch(), encoding="bytes")
    assert np.array_equal(content[b"data"], PIXELS) and content[b"labels"] == [1, 9, 0]


@pytest.mark.parametrize("levels_up", [0, 1])
def test_python_2_batches_are_read(folder, levels_up):
    data = load_dataset("cifar10", [folder, folder.parent][levels_up])
    images, labels = data.train.load(torch.arange(3))
    assert np.array_equal(images.numpy(), PIXELS.reshape(3, 3, 32, 32)) and labels.tolist() == [1, 9, 0]
    assert data.classes == tuple(name.decode() for name in NAMES) and len(data.test) == 2


def test_column_major_batches_are_read(folder):
    entries = {"labels": items(map(number, (1, 9, 0))), "data": array(PIXELS, fortran=True)}
    (folder / "data_batch_1").write_bytes(python2(**entries))
    assert np.array_equal(load_dataset("cifar10", folder).train.pixels.numpy().reshape(3, 3072), PIXELS)


@pytest.mark.parametrize("keys", [(b"data", b"labels"), ("data", "labels")])
def test_batches_rewritten_by_python_3_are_read(folder, keys):
    content = dict(zip(keys, (PIXELS, [1, 9, 0])))
    (folder / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    assert np.array_equal(load_dataset("cifar10", folder).train.pixels.numpy().reshape(3, 3072), PIXELS)


def test_a_malicious_pickle_does_nothing(folder):
    witness = folder / "witness"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {witness}",)

    content = pickle.dumps({b"data": Attack()}, protocol=2)
    refused(folder, content, rf"refused the global {os.system.__module__}\.system")
    assert not witness.exists()
    pickle.loads(content)
    assert witness.exists()  # the attack was a real one


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("numpy", "load"),
        ("numpy", "core.multiarray._reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("_codecs", "decode"),
        ("cdn.errors", "DataError"),
    ],
)
def test_every_other_global_is_refused(folder, module, name):
    refused(folder, b"\x80\x02c" + f"{module}\n{name}\n.".encode(), f"refused the global {module}.{name}")


def test_an_extension_code_is_no_way_round(folder):
    refused(folder, b"\x80\x02\x82\x01.", "expected a CIFAR-10 pickle")


def test_numpys_own_array_is_out_of_reach(folder):
    # With the real ndarray and dtype these calls would make Python objects out of chosen bytes.
    kind = b"cnumpy\ndtype\n" + text(b"O") + b"\x85R"
    call = b"cnumpy\nndarray\nK\x01\x85" + kind + text(bytes(8)) + b"\x87R."
    refused(folder, b"\x80\x02" + call, "expected a CIFAR-10 pickle, got TypeError")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "EOFError"),
        (b"\x80\x02garbage", "UnpicklingError"),
        (batch()[:2000], "expected a CIFAR-10 pickle"),
        (pickle.dumps([1], protocol=2), "expected a pickled dictionary, got list"),
        (python2(labels=items([number(1)])), "expected 'data' to be uint8"),
        (python2(data=array(PIXELS)), "expected 'labels' to be a list"),
        (batch(PIXELS[:2]), r"expected one label per image \(2\), got 3"),
        (batch(PIXELS[:, :100]), r"expected 'data' to be uint8 \[N, 3072\], got \[3, 100\]"),
        (batch(PIXELS[:0], ()), "expected 'data' to be uint8"),
        (batch(labels=(1, 2, 10)), r"expected labels 0\.\.9, got 10 in image 2"),
        (batch(labels=(-1, 2, 3)), r"expected labels 0\.\.9, got -1 in image 0"),
        (python2(data=array(PIXELS), labels=items([b"\x88"] * 3)), "list of integers"),
        (python2(data=array(PIXELS), labels=items([b"\x8a\x09" + bytes(8) + b"\x01"] * 3)), "list of integers"),
        (python2(data=array(PIXELS, dtype=b"i1")), "an array of type i1"),
        (python2(data=array(PIXELS, raw=b"short")), "ValueError"),
        (python2(data=array(PIXELS, shape=(2**30, 3072))), "ValueError"),
        (python2(data=b"cnumpy\nndarray\n"), "expected 'data' to be uint8"),
    ],
)
def test_corrupt_batches_are_named(folder, content, message):
    refused(folder, content, message)


@pytest.mark.parametrize(
    "content",
    [b"x", python2(num_vis=number(1)), python2(label_names=items([number(1)] * 10)), python2(label_names=items([]))],
)
def test_corrupt_names_are_named(folder, content):
    (folder / "batches.meta").write_bytes(content)
    with pytest.raises(DataError, match="batches.meta: expected"):
        load_dataset("cifar10", folder)
