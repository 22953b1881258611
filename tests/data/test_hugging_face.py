"""Data sets of Hugging Face's package: local ones, in every form that it writes, and what cannot be read."""

import io
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from cdn.commands import evaluate, train
from cdn.data import load_dataset
from cdn.data.hugging_face import File, load_hugging_face
from cdn.errors import DataError

datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
NAMES = ["cat", "dog"]


def pixels(number, width=8, height=8):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def table(count, *, first=0, size=(8, 8), mode="RGB", image="image", label="label", labels=None, **more):
    """Make a split of ``count`` random images in alternating classes."""
    images = [Image.fromarray(pixels(first + i, *size)).convert(mode) for i in range(count)]
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=NAMES)}
    columns = {image: images, label: [i % 2 for i in range(count)] if labels is None else labels}
    features |= {name: feature for name, (feature, _) in more.items()}
    columns |= {name: [value] * count for name, (_, value) in more.items()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def saved(path, **splits):
    """Write splits to a folder, and return its path."""
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return str(path)


def as_parquet(path, **splits):
    path.mkdir()
    for name, split in splits.items():
        split.to_parquet(str(path / f"{name}-00000-of-00001.parquet"))
    return str(path)


def as_undeclared_parquet(path, **splits):
    """Write parquet files as other programs do, which declare nothing."""
    import pyarrow.parquet

    path.mkdir()
    for name, split in splits.items():
        raw = split.cast_column("image", datasets.Image(decode=False)).data.table
        pyarrow.parquet.write_table(raw.replace_schema_metadata(None), path / f"{name}.parquet")
    return str(path)


def as_shards(path, **splits):
    """Write tar files in the layout of WebDataset, of two images each, which name no classes."""
    path.mkdir()
    for name, split in splits.items():
        for number, row in enumerate(split):
            image = io.BytesIO()
            row["image"].save(image, "PNG")
            with tarfile.open(path / f"{name}-{number // 2:04}.tar", "a") as shard:
                for suffix, content in (("png", image.getvalue()), ("cls", str(row["label"]).encode())):
                    member = tarfile.TarInfo(f"{number:06}.{suffix}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize("write", [saved, as_parquet, as_undeclared_parquet, as_shards])
@pytest.mark.parametrize("test", ["test", "validation"])
def test_every_form_gives_the_same_images(tmp_path, write, test):
    source = write(tmp_path / "data", train=table(5), **{test: table(3, first=5)})
    found = load_dataset("hf", source)
    assert found.classes == (tuple(NAMES) if write in (saved, as_parquet) else ("0", "1"))
    assert found.shape == (3, 8, 8) and len(found.test) == 3
    for split, first, count in ((found.train, 0, 5), (found.test, 5, 3)):
        images, labels = split.load(torch.arange(count).flip(0))
        expected = np.stack([pixels(first + i) for i in reversed(range(count))])
        assert np.array_equal(images.numpy(), expected.transpose(0, 3, 1, 2))
        assert labels.tolist() == [i % 2 for i in reversed(range(count))]


def test_a_validation_split_comes_before_a_test_split(tmp_path):
    splits = dict(train=table(2), test=table(3, labels=[-1, -1, -1]), validation=table(4))
    assert len(load_dataset("hf", saved(tmp_path / "data", **splits)).test) == 4


def test_grey_images_have_one_channel(tmp_path):
    source = saved(tmp_path / "data", train=table(2, mode="L"), test=table(2, mode="L"))
    assert load_dataset("hf", source).shape == (1, 8, 8)
    mixed = saved(tmp_path / "mixed", train=table(2, mode="L"), test=table(2))
    assert load_dataset("hf", mixed).shape == (3, 8, 8)


def test_images_are_resized_when_asked_for(tmp_path):
    source = saved(tmp_path / "data", train=table(2, size=(12, 9)), test=table(2, size=(20, 30)))
    assert load_dataset("hf", source, image_size=6).train.load(torch.arange(2))[0].shape == (2, 3, 6, 6)
    unasked = load_dataset("hf", source)
    assert unasked.shape == (3, 9, 12) and unasked.train.load(torch.tensor([1]))[0].shape == (1, 3, 9, 12)
    with pytest.raises(DataError, match=r"data test, image 1: has 20x30 pixels and others 12x9: say .*--image-size"):
        unasked.test.load(torch.tensor([1]))


@pytest.mark.parametrize(
    "columns",
    [
        dict(image="img", label="fine_label", coarse_label=(datasets.ClassLabel(names=["animal"]), 0)),
        dict(image="picture", label="kind"),
        dict(source=(datasets.Value("string"), "a camera"), number=(datasets.Value("int64"), 7)),
    ],
    ids=lambda columns: columns.get("image", "image"),
)
def test_columns_are_found_by_what_they_hold(tmp_path, columns):
    found = load_dataset("hf", saved(tmp_path / "data", train=table(2, **columns), test=table(2, **columns)))
    assert found.classes == tuple(NAMES) and found.train.labels.tolist() == [0, 1]


def numbers(count):
    return datasets.Dataset.from_dict(dict(number=list(range(count))))


@pytest.mark.parametrize(
    "splits, options, sentence",
    [
        (lambda: dict(train=table(2)), {}, "expected splits train and one of validation, val, valid, test, got train"),
        (lambda: dict(train=numbers(2), test=numbers(2)), {}, r"one of labels, got number \(Value\)"),
        (lambda: dict(train=table(2, size=(300, 8)), test=table(1)), {}, "has 300x8 pixels: sizes above 256 are not"),
        (lambda: dict(train=table(2), test=table(1)), dict(image_size=0), "image_size: expected at least 1 pixel"),
        (lambda: dict(train=table(2), test=table(2, labels=[0, -1])), {}, "labels: expected none below 0, got -1"),
    ],
    ids=["no test", "no images", "large", "no pixel", "unlabelled"],
)
def test_what_is_no_data_set_of_images_is_refused(tmp_path, splits, options, sentence):
    source = saved(tmp_path / "data", **splits())
    with pytest.raises(DataError, match=sentence):
        load_dataset("hf", source, **options)


def test_a_name_that_nobody_knows_is_refused():
    with pytest.raises(DataError, match="no/such: datasets cannot load it: "):
        load_dataset("hf", "no/such")


def test_images_that_cannot_be_decoded_are_named(tmp_path):
    with pytest.raises(DataError, match="toy, image 3: its file cannot be read: No such file"):
        File(dict(bytes=None, path=str(tmp_path / "gone.png")), "toy, image 3")
    split = table(3).cast_column("image", datasets.Image(decode=False))
    content = io.BytesIO()
    Image.fromarray(pixels(0)).save(content, "PNG")
    broken = [dict(bytes=content.getvalue(), path=None), dict(bytes=content.getvalue()[:40], path=None)]
    split = datasets.Dataset.from_dict(dict(image=broken, label=[0, 1]), features=datasets.Features(split.features))
    found = load_dataset("hf", saved(tmp_path / "data", train=split, test=table(1)))
    with pytest.raises(DataError, match="data train, image 1: expected a readable image"):
        found.train.load(torch.arange(2))


# How a file of training images is damaged, and words of the sentence that it gives.
DAMAGED = {
    "tar": (as_shards, lambda c: c[:2048] + bytes(512) + c[2560:], "0000.tar: member 2 of it is damaged"),
    "parquet": (as_parquet, lambda c: c[: len(c) // 2], "cannot load it: ArrowInvalid: Parquet magic bytes"),
    "arrow": (saved, lambda c: c[: len(c) // 2], "cannot load it: OSError: Expected to be able to read"),
}


@pytest.mark.parametrize("write, damage, words", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_one_sentence(tmp_path, write, damage, words):
    source = write(tmp_path / "data", train=table(6), test=table(3, first=6))
    files = (tmp_path / "data").rglob("*")
    path = min(p for p in files if "train" in str(p) and p.suffix in (".tar", ".parquet", ".arrow"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as error:
        load_dataset("hf", source)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_sample_of_a_shard_without_label_or_image_is_named(tmp_path):
    for suffix, words in ((".cls", "train: image 1 has no label"), (".png", "train, image 1: there is none")):
        source = tmp_path / suffix
        as_shards(source, train=table(2), test=table(2))
        with tarfile.open(source / "train-0000.tar") as shard:
            kept = [(m, shard.extractfile(m).read()) for m in shard if m.name != f"000001{suffix}"]
        with tarfile.open(source / "train-0000.tar", "w") as shard:
            for member, content in kept:
                shard.addfile(member, io.BytesIO(content))
        with pytest.raises(DataError, match=words):
            load_dataset("hf", str(source)).train.load(torch.arange(2))


def test_the_package_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"expected Hugging Face's package datasets .*\[hf\]"):
        load_hugging_face("anything")


def test_a_run_is_trained_resumed_and_evaluated(tmp_path, capsys):
    source = saved(tmp_path / "data", train=table(8), test=table(4, first=8))
    tiny = "--model gradresnet-small --width 8 --steps 2 --batch-size 4 --evaluations 1 --crop-padding 1"
    assert train.main(["--data", "hf", "--data-dir", "data", "--out", "run", *tiny.split()]) is None
    assert train.main(["--resume", "run"]) is None
    evaluate.main(["run", "--limit", "4"])
    assert "run: 4 test images of hf" in capsys.readouterr().out
    assert source
