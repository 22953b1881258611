import numpy as np
import pytest
import torch
from PIL import Image

from cdn.errors import CDNError, DataError
from cdn.images.image_files import check_writable, read_image, write_image

COLOUR = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]], [[0, 0, 0], [9, 9, 9]]], np.uint8)


def saved(tmp_path, pixels, name="in.png", mode=None, **options):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(tmp_path / name, **options)
    return tmp_path / name


def test_colour_is_read_as_it_is(tmp_path):
    y, note = read_image(saved(tmp_path, COLOUR), 3)
    assert y.shape == (1, 3, 3, 2) and note is None
    assert torch.equal(y[0].permute(1, 2, 0), torch.from_numpy(COLOUR).float() / 255)


def test_colour_becomes_grey_and_grey_colour_with_a_note(tmp_path):
    y, note = read_image(saved(tmp_path, COLOUR), 1)
    assert y.shape == (1, 1, 3, 2) and "converted to grey" in note
    y, note = read_image(saved(tmp_path, COLOUR[..., 0]), 3)
    assert y.shape == (1, 3, 3, 2) and "repeated in 3 channels" in note
    assert torch.equal(y[:, 0], y[:, 2])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_opaque_8_bit_mode_is_read(tmp_path, mode):
    path = saved(tmp_path, COLOUR, "in.tif" if mode == "CMYK" else "in.png", mode)
    assert read_image(path, 1)[0].shape == (1, 1, 3, 2)
    assert read_image(path, 3)[0].shape == (1, 3, 3, 2)


def test_rotated_photographs_are_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(saved(tmp_path, COLOUR, exif=exif), 3)[0].shape == (1, 3, 2, 3)


def test_a_square_is_cut_out_and_resized(tmp_path):
    assert read_image(saved(tmp_path, COLOUR), 3, size=5)[0].shape == (1, 3, 5, 5)


def test_unusable_images_are_refused_in_one_line(tmp_path):
    deep = saved(tmp_path, np.array([[0, 60000]], np.uint16), "deep.png")
    transparent = saved(tmp_path, np.zeros((2, 2, 4), np.uint8), "transparent.png")
    torn = tmp_path / "torn.png"
    torn.write_bytes(saved(tmp_path, np.zeros((64, 64), np.uint8)).read_bytes()[:50])
    text = tmp_path / "text.png"
    text.write_text("no image")
    for path, cause in (
        (deep, "8 bits per channel"),
        (transparent, "transparent"),
        (torn, "readable image"),
        (text, "readable image"),
        (tmp_path / "none.png", "no such file"),
        (tmp_path, "readable"),
    ):
        with pytest.raises(DataError, match=cause) as error:
            read_image(path, 3)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(CDNError, match="1 or 3 channels, but the model takes 2"):
        read_image(text, 2)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_survive_lossless_formats(tmp_path, suffix, channels):
    pixels = torch.randint(0, 256, (1, channels, 5, 7)) / 255
    write_image(tmp_path / f"out{suffix}", pixels)
    assert torch.equal(read_image(tmp_path / f"out{suffix}", channels)[0], pixels)
    assert len(list(tmp_path.iterdir())) == 1


def test_values_are_clipped_and_rounded(tmp_path):
    write_image(tmp_path / "out.png", torch.tensor([-0.5, 0.5, 1.7]).view(1, 1, 1, 3))
    assert np.array(Image.open(tmp_path / "out.png")).tolist() == [[0, 128, 255]]


def test_outputs_are_checked_before_any_work(tmp_path):
    source = saved(tmp_path, COLOUR)
    check_writable(tmp_path / "out.jpg", source)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(source)
    for name, cause in (
        ("out.gif", "ending in"),
        ("out", "no suffix"),
        ("folder.png", "folder"),
        ("in.png", "same"),
        ("link.png", "same"),
        ("none/out.png", "does not exist"),
    ):
        with pytest.raises(CDNError, match=cause):
            check_writable(tmp_path / name, source)
