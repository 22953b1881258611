"""Folders of images: lazy decoding, the cache, the centre crop, and one clear error per defect."""

import numpy as np
import pytest
import torch
from PIL import Image

from cdn.data import decoded, imagefolder, load_dataset
from cdn.errors import DataError
from cdn.images.decoder import decode


def save(path, width=6, height=6, value=None, mode="RGB"):
    """Write a constant or a random image and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if value is None:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert(mode)
    else:
        image = Image.new(mode, (width, height), value)
    image.save(path)
    return path


def decode_square(path, size):
    """Return an image as folders of images give it."""
    images, _ = imagefolder.FolderSplit([path], torch.zeros(1, dtype=torch.int64), size).load(torch.tensor([0]))
    return images[0]


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "train/cat/b.PNG", value=(2, 0, 0))
    save(tmp_path / "train/cat/a.png", value=(1, 0, 0))
    save(tmp_path / "train/ant/c.bmp", value=(3, 0, 0))
    save(tmp_path / "val/cat/d.webp", value=(4, 4, 4))
    return tmp_path


def load(folder, **options):
    return load_dataset("imagefolder", folder, **options)


def everything(split):
    return split.load(torch.arange(len(split)))


def test_classes_and_files_come_sorted(folder):
    data = load(folder)
    images, labels = everything(data.train)
    assert data.classes == ("ant", "cat") and data.shape == (3, 6, 6)
    assert labels.tolist() == [0, 1, 1] and images[:, 0, 0, 0].tolist() == [3, 1, 2]
    assert images.dtype == torch.uint8 and data.train.exact.all()
    assert data.test.labels.tolist() == [1]


def test_test_stands_in_for_val_and_val_comes_first(folder):
    save(folder / "test/ant/e.png")
    assert load(folder).test.labels.tolist() == [1]
    (folder / "val").rename(folder / "other")
    assert load(folder).test.labels.tolist() == [0]


def test_a_square_cut_at_its_own_size_keeps_its_pixels(tmp_path):
    path = save(tmp_path / "a.png", width=11, height=5)
    expected = np.asarray(Image.open(path))[:, 3:8].transpose(2, 0, 1)
    assert np.array_equal(decode_square(path, 5).numpy(), expected)


def test_resizing_averages_instead_of_skipping(tmp_path):
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "a.png")
    small = decode_square(tmp_path / "a.png", 8)
    assert small.shape == (3, 8, 8) and (small.int() - 127).abs().max() <= 3


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg")])
def test_other_modes_become_rgb(tmp_path, mode, suffix):
    assert decode_square(save(tmp_path / f"a.{suffix}", mode=mode), 6).shape == (3, 6, 6)


def test_decoding_is_lazy_and_happens_once(folder, monkeypatch):
    decoded = []

    def counting(path, **how):
        decoded.append(path)
        return decode(path, **how)

    monkeypatch.setattr(imagefolder, "decode", counting)
    split = load(folder).train
    assert decoded == []
    first, _ = split.load(torch.tensor([2, 2, 0]))
    assert len(decoded) == 2
    first.zero_()
    assert everything(split)[0][:, 0, 0, 0].tolist() == [3, 1, 2]
    assert len(decoded) == 3


def test_a_split_past_the_limit_is_not_cached(folder, monkeypatch):
    monkeypatch.setattr(decoded, "CACHE_BYTES", 3 * 6 * 6 * 3 - 1)
    split = load(folder).train
    expected, _ = everything(split)
    for path in split.paths:
        path.unlink()
    assert expected[:, 0, 0, 0].tolist() == [3, 1, 2]
    with pytest.raises(DataError, match="ant/c.bmp"):
        everything(split)


def test_hidden_files_are_passed_over(folder):
    expected, _ = everything(load(folder).train)
    for path in ("train/cat/.hidden.png", "train/.cache", "val/.DS_Store"):
        (folder / path).touch()
    assert torch.equal(everything(load(folder).train)[0], expected)


@pytest.mark.parametrize("path", ["val/unknown", "train/cat/nested.png"])
def test_folders_out_of_place_are_named(folder, path):
    save(folder / path / "a.png")
    with pytest.raises(DataError, match=path):
        load(folder)


@pytest.mark.parametrize(("missing", "message"), [("train", "train: expected a folder"), ("val", "val or test")])
def test_both_splits_are_needed(folder, missing, message):
    (folder / missing).rename(folder / "elsewhere")
    with pytest.raises(DataError, match=message):
        load(folder)


def test_an_empty_split_is_refused(folder):
    (folder / "test").mkdir()
    (folder / "val").rename(folder / "elsewhere")
    with pytest.raises(DataError, match="found nothing"):
        load(folder)


def test_image_size_is_positive(folder):
    with pytest.raises(DataError, match="image_size: expected at least 1 pixel, got 0"):
        load(folder, image_size=0)


def test_undecodable_and_truncated_images_are_named(folder):
    whole = save(folder / "train/cat/z.jpg", width=40, height=40).read_bytes()
    for content in (b"not a jpeg", b"", whole[: len(whole) // 2]):
        (folder / "train/cat/z.jpg").write_bytes(content)
        with pytest.raises(DataError, match=r"train/cat/z\.jpg: expected a readable image"):
            everything(load(folder, image_size=6).train)


def test_an_undecodable_first_image_is_named(folder):
    (folder / "train/ant/c.bmp").write_bytes(b"BM")
    with pytest.raises(DataError, match=r"ant/c\.bmp"):
        load(folder)


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 4096, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="deep.png: expected 8 bits per channel, got 16"):
        decode_square(tmp_path / "deep.png", 4)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="DecompressionBomb"):
        decode_square(save(tmp_path / "bomb.png"), 6)


def test_another_format_behind_an_image_suffix_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match="a.png"):
        decode_square(tmp_path / "a.png", 4)


def test_real_photographs(shared_data):
    root = shared_data / "imagefolder"
    if not root.is_dir():
        pytest.skip(f"no image folder at {root}")
    data = load(root)
    assert (data.num_classes, data.shape, len(data.train), len(data.test)) == (20, (3, 64, 64), 1000, 200)
    images, labels = data.train.load(torch.arange(0, 1000, 50))
    assert labels.tolist() == list(range(20)) and images.float().std() > 30
    assert load(root, image_size=32).test.load(torch.arange(5))[0].shape == (5, 3, 32, 32)
