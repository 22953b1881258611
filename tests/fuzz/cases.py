"""What a case of each kind is: a place with damaged files in it, and a command or function that reads them."""

import contextlib
import functools
import gzip
import hashlib
import io
import json
import pickle
import re
import runpy
import sys
import tarfile
import warnings
from unittest import mock

import numpy as np
import torch

import cdn
from cdn.data import cifar10_download, load_dataset
from cdn.methods.synthesis.generators import load_generators
from tests.command_rows import COMMANDS, FROZEN
from tests.data import image_files
from tests.fuzz.mutations import altered, altered_json, altered_rows, altered_words, damaged

# By suffix: Pillow's name of the format, and the modes of its seeds.
IMAGES = {
    "png": ("PNG", ("L", "RGB", "P", "LA", "RGBA", "1")),
    "jpg": ("JPEG", ("L", "RGB", "CMYK")),
    "jpeg": ("JPEG", ("RGB",)),
    "webp": ("WEBP", ("RGB", "RGBA")),
    "bmp": ("BMP", ("L", "RGB", "P", "1")),
    "tif": ("TIFF", ("L", "RGB", "CMYK", "1", "LAB")),
    "tiff": ("TIFF", ("RGB",)),
    "ppm": ("PPM", ("RGB",)),
    "pgm": ("PPM", ("L",)),
}
# Options whose large values are no mistake, only a long wait.
LONG = ("--steps", "--epochs", "--warmup", "--n", "--n0", "--jem-steps", "--restarts", "--draws", "--chains")
SLOW = ("suite", "ablation")  # they start trainings of their own, for hours where their arguments allow it
NAMES = [f"class{number}" for number in range(10)]


@functools.cache
def image_bytes(suffix):
    """Return the files of a suffix, one for each mode."""
    kind, modes = IMAGES[suffix]
    options = dict(compression="tiff_lzw") if suffix == "tiff" else {}
    return [image_files.encoded(image_files.picture(mode), kind, **options) for mode in modes]


@functools.cache
def options_of(module):
    """Return the options that the help of a command names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        execute(module, ["--help"])
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", said.getvalue())) - {"--help", *LONG})


def execute(module, words):
    """Run a command as ``python -m`` does, in this process."""
    with mock.patch.object(sys, "argv", [module, *map(str, words)]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def command(name, place):
    """Return a call of a command of the table, as it reads what is at a place."""
    row = COMMANDS[name]
    return functools.partial(execute, row.module, row.words(place))


# ----------------------------------------------------------------------------------------------------------------
# Kinds: each is given a random.Random and a place, damages it, and returns (what was done, call)
# ----------------------------------------------------------------------------------------------------------------


def image(random, at):
    suffix = random.choice(list(IMAGES))
    data = damaged(random, random.choice(image_bytes(suffix)))
    reader = random.choice(("classify", "denoise", "photographs", "image folder"))
    if reader == "photographs" and random.random() < 0.8:
        reader = "classify"  # it takes seconds
    if reader == "image folder":
        for split in ("train", "val"):
            folder = at.root / "folder" / split / "a"
            folder.mkdir(parents=True)
            folder.joinpath(f"0.{suffix}").write_bytes(random.choice(image_bytes(suffix)))
            folder.joinpath(f"1.{suffix}").write_bytes(data)
        size = random.choice((None, 6))
        return f"{suffix}: image folder", lambda: read_all(
            load_dataset("imagefolder", at.root / "folder", image_size=size)
        )
    if reader == "photographs":
        at.images.joinpath(f"b.{suffix}").write_bytes(data)
        return f"{suffix}: {reader}", command(reader, at)
    at = at._replace(image=at.image.with_suffix(f".{suffix}"), out=at.out.with_suffix(f".{suffix}"))
    at.image.write_bytes(data)
    row = COMMANDS[reader]
    return f"{suffix}: {reader}", functools.partial(
        execute, row.module, [word if word != at.out.with_suffix(".png") else at.out for word in row.words(at)]
    )


def call_only(function, *arguments):
    function(*arguments)


def read_all(dataset):
    for split in (dataset.train, dataset.test):
        split.load(torch.arange(len(split)))


def batch_bytes(random, count=3):
    return b"".join(bytes([random.randrange(10)]) + random.randbytes(3072) for _ in range(count))


def pickled(random, count=2):
    """Return a batch as the authors' Python 2 would have pickled it: protocol 2, keys of bytes."""
    content = {b"data": np.zeros((count, 3072), np.uint8), b"labels": [random.randrange(10) for _ in range(count)]}
    return pickle.dumps(content, protocol=2)


def archive(random, at):
    folder = at.root / "cifar"
    folder.mkdir()
    form = random.choice(("records", "pickles", "strips", "tar"))
    if form == "records":
        files = {name: batch_bytes(random) for name in ("data_batch_1.bin", "test_batch.bin")}
        files["batches.meta.txt"] = "\n".join(NAMES).encode()
    elif form == "pickles":
        files = {name: pickled(random) for name in ("data_batch_1", "test_batch")}
        files["batches.meta"] = pickle.dumps({b"label_names": [name.encode() for name in NAMES]}, protocol=2)
    elif form == "strips":
        files = {}
        for split in ("train", "test"):
            pixels = np.zeros((64, 32, 3), np.uint8)
            files[f"{split}_000.webp"] = image_files.encoded(image_files.picture(pixels=pixels), "WEBP")
            for name, values in (("labels", [1, 2]), ("inexact", [0])):
                stream = io.BytesIO()
                np.save(stream, np.array(values))
                files[f"{split}_{name}.npy"] = stream.getvalue()
    else:
        return "tar", functools.partial(download, at.root / "cifar", damaged_tar(random))
    name = random.choice(list(files))
    files[name] = damaged(random, files[name])
    for other, data in files.items():
        folder.joinpath(other).write_bytes(data)
    return f"{form}: {name}", lambda: read_all(load_dataset("cifar10", folder))


def damaged_tar(random):
    """Return an archive of the authors' form with damage before or after its compression."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in sorted(cifar10_download.MEMBERS):
            member = tarfile.TarInfo(name)
            member.type = random.choice((tarfile.REGTYPE,) * 20 + (tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE))
            data = batch_bytes(random, 1) if name.endswith(".bin") else b"\n".join(n.encode() for n in NAMES)
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    if random.random() < 0.5:
        return gzip.compress(damaged(random, stream.getvalue()))
    return damaged(random, gzip.compress(stream.getvalue()))


def download(folder, data):
    """Let an archive come from the authors' address with the sum that is expected, and read it."""
    response = mock.MagicMock()
    response.__enter__.return_value = response
    response.headers = {"Content-Length": str(len(data))}
    response.read = io.BytesIO(data).read
    with (
        mock.patch("urllib.request.urlopen", return_value=response),
        mock.patch.object(cifar10_download, "MD5", hashlib.md5(data).hexdigest()),
    ):
        read_all(load_dataset("cifar10", folder, download=True))


def checkpoint(random, at):
    which = random.choice(("state bytes", "state content", "weights bytes", "weights header", "generators"))
    if which == "generators":
        path = at.root / "generators.safetensors"
        path.write_bytes(
            damaged_weights(random, (FROZEN / "generators.safetensors").read_bytes(), random.random() < 0.5)
        )
        return which, lambda: call_only(load_generators, path)
    if which.startswith("weights"):
        path = at.run / "model.safetensors"
        path.write_bytes(damaged_weights(random, path.read_bytes(), which == "weights header"))
        reader = random.choice(("load", "classify", "denoise", "evaluate"))
        call = (lambda: call_only(cdn.load, at.run)) if reader == "load" else command(reader, at)
        return f"{which}: {reader}", call
    path = at.run / "state.pt"
    if which == "state bytes":
        path.write_bytes(damaged(random, path.read_bytes()))
    else:
        state = torch.load(path, weights_only=True)
        torch.save(altered_state(random, state), path)
    return which, command("train, resumed", at)


def damaged_weights(random, data, header):
    """Return a safetensors file with damaged bytes, or with another header before its numbers."""
    if not header:
        return damaged(random, data)
    end = 8 + int.from_bytes(data[:8], "little")
    tree = json.loads(data[8:end])
    metadata = tree.get("__metadata__", {})
    name = random.choice([None, *metadata])
    if name is None:
        tree = altered(random, tree)
    else:  # JSON within JSON
        try:
            metadata[name] = altered_json(random, metadata[name]).decode(errors="replace")
        except ValueError:
            metadata[name] = random.choice(("", "x", "null", "[]"))
    text = json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text + data[end:]


def altered_state(random, state):
    """Return the content of a checkpoint with tensors of another shape, dtype or content, and other values."""

    def walk(value):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield value, key, inner
            yield from walk(inner)

    for _ in range(random.choice((1, 1, 2))):
        container, key, value = random.choice(list(walk(state)))
        if isinstance(value, torch.Tensor) and random.random() < 0.7:
            container[key] = random.choice(
                (
                    lambda t: t.flatten()[:-1] if t.numel() else t[None],
                    lambda t: t[None],
                    lambda t: t.double(),
                    lambda t: t.bool(),
                    lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t - t,
                    lambda t: t.to(torch.complex64),
                )
            )(value)
        elif random.random() < 0.3 and isinstance(container, dict):
            del container[key]
        else:
            container[key] = random.choice((None, -1, 10**18, 1e308, float("nan"), "", [], {}, torch.zeros(3)))
    return state


def configuration(random, at):
    name = random.choice(("config.json",) * 3 + ("metrics.jsonl", "data.json", "evaluation.json", "certificates.jsonl"))
    if name == "config.json":
        path = at.run / name
        path.write_bytes(altered_json(random, path.read_text()))
        reader = random.choice(("train, resumed", "evaluate", "compare", "classify", "certify", "sampling", "denoise"))
    elif name == "metrics.jsonl":
        path = at.run / name
        path.write_bytes(altered_rows(random, path.read_text()))
        reader = random.choice(("train, resumed", "compare"))
    elif name == "data.json":
        text = json.dumps(
            dict(
                classes=[str(c) for c in range(10)],
                shape=[1, 8, 8],
                train=dict(images=1437, labels="", holds={}),
                test=dict(images=360, labels="", holds={"0": [35]}),
            )
        )
        at.run.joinpath(name).write_bytes(altered_json(random, text))
        reader = "train, resumed"
    elif name == "evaluation.json":
        text = json.dumps(
            dict(accuracy=0.5, psnr_15=1.0, reliability=dict(confidence=[0.5], accuracy=[0.5], share=[1.0]))
        )
        at.run.joinpath(name).write_bytes(altered_json(random, text))
        reader = "compare"
    else:
        at.out.mkdir(parents=True)
        row = json.dumps(dict(image=0, label=1, radius=0.5, draws=9, seconds=0.1, settings=dict(sigma=0.12)))
        at.out.joinpath(name).write_bytes(altered_rows(random, f"{row}\n{row}\n"))
        reader = "certify"
    row = COMMANDS[reader]
    words = [*row.words(at)]
    if reader in ("certify", "sampling"):
        words += ["--limit", 2, *(["--n", 4, "--n0", 2, "--sigmas", 0.25] if reader == "certify" else [])]
    return f"{name}: {reader}", functools.partial(execute, row.module, words)


def arguments(random, at):
    name = random.choice([name for name in COMMANDS if name not in SLOW])
    row = COMMANDS[name]
    words = altered_words(random, row.words(at), options_of(row.module))
    return f"{name}: {' '.join(words)}", functools.partial(execute, row.module, words)


# By name: what makes a case of a kind, and its share of all.
KINDS = {
    "image": image,
    "archive": archive,
    "checkpoint": checkpoint,
    "configuration": configuration,
    "arguments": arguments,
}
