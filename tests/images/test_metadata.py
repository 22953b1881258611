"""What a file says beside its pixels is kept by cdn.denoise where it still holds; the rest is named in one line."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from cdn.commands import denoise as command
from cdn.model import density
from tests.data.image_files import encoded, picture

RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_PROFILE = RGB_PROFILE[:16] + b"GRAY" + RGB_PROFILE[20:]
CMYK_PROFILE = RGB_PROFILE[:16] + b"CMYK" + RGB_PROFILE[20:]
KINDS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".bmp": "BMP"}
ORIENTATION, MAKER_NOTE, WIDTH = 0x0112, 0x927C, 0xA002


@pytest.fixture
def denoise(make_run, tmp_path, monkeypatch, capsys):
    """Return a function that passes a file through cdn.denoise, with a denoiser that changes nothing."""
    monkeypatch.setattr(density, "denoise", lambda model, y, sigma, label: y)

    def run(data, source=".png", target=".png", channels=3):
        (tmp_path / f"in{source}").write_bytes(data)
        if not (folder := tmp_path / f"run-joint-{channels}").exists():
            make_run(channels=channels)
        out = tmp_path / f"out{target}"
        command.main(list(map(str, (folder, tmp_path / f"in{source}", out, "--sigma", "0.1", "--device", "cpu"))))
        lines = [line for line in capsys.readouterr().out.splitlines() if "not carried over" in line]
        assert len(lines) <= 1
        with Image.open(out) as image:
            image.load()
            return image, lines[0].partition("is not carried over: ")[2] if lines else ""

    return run


def camera_exif(orientation=6):
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Copyright] = "A maker", "An author"
    exif[ORIENTATION] = orientation
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.DateTimeOriginal: "2026:01:31 12:00:00", MAKER_NOTE: b"offsets", WIDTH: 9}
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    return exif.tobytes()


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", [".png", ".jpg", ".tif"])
def test_what_still_holds_is_kept_and_the_rest_is_named(source, target, denoise):
    data = encoded(picture(), KINDS[source], icc_profile=RGB_PROFILE, dpi=(300, 150), exif=camera_exif(1))
    image, dropped = denoise(data, source, target)
    takes = {".webp": {"profile", "EXIF"}, ".bmp": {"resolution"}}.get(target, {"profile", "resolution", "EXIF"})
    assert (image.info.get("icc_profile") == RGB_PROFILE) == ("profile" in takes) == ("profile" not in dropped)
    assert (image.info.get("dpi") == pytest.approx((300, 150), abs=1)) == ("resolution" in takes)
    assert ("resolution" in takes) == ("resolution" not in dropped)
    exif = image.getexif()
    assert (exif.get(ExifTags.Base.Make) == "A maker") == ("EXIF" in takes) == ("EXIF data" not in dropped)
    if "EXIF" in takes:
        assert exif[ExifTags.Base.Copyright] == "An author"
        inside = exif.get_ifd(ExifTags.IFD.Exif)
        assert inside[ExifTags.Base.DateTimeOriginal] == "2026:01:31 12:00:00"
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
        assert MAKER_NOTE not in inside and WIDTH not in inside and "maker's notes" in dropped


@pytest.mark.parametrize("source", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_output_is_upright_once(source, orientation, denoise):
    """The pixels are turned, so that nothing in the output may ask for it again, and resolutions turn with them."""
    data = encoded(picture(), KINDS[source], dpi=(300, 150), exif=camera_exif(orientation))
    image, _ = denoise(data, source, ".png")
    assert image.getexif().get(ORIENTATION, 1) == 1
    expected = (150, 300) if orientation == 6 else (300, 150)
    assert image.info["dpi"] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("mode", "kind", "profile", "channels", "holds"),
    [
        ("RGB", ".png", RGB_PROFILE, 3, True),
        ("L", ".png", GREY_PROFILE, 1, True),
        ("P", ".png", RGB_PROFILE, 3, True),
        ("RGB", ".png", RGB_PROFILE, 1, False),
        ("L", ".png", GREY_PROFILE, 3, False),
        ("L", ".png", RGB_PROFILE, 3, False),
        ("CMYK", ".jpg", CMYK_PROFILE, 3, False),
        ("CMYK", ".tif", RGB_PROFILE, 3, False),
        ("RGB", ".png", b"short", 3, False),
    ],
)
def test_a_colour_profile_holds_for_its_own_colours_only(mode, kind, profile, channels, holds, denoise):
    image, dropped = denoise(encoded(picture(mode), KINDS[kind], icc_profile=profile), kind, ".png", channels)
    assert (image.info.get("icc_profile") == profile) == holds == ("colour profile" not in dropped)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(".tif", {}), (".png", {}), (".webp", {}), (".jpg", dict(format="MPO"))],
    ids=["TIFF", "APNG", "WebP", "MPO"],
)
def test_further_frames_are_named(kind, options, denoise):
    more = [picture(pixels=np.full((6, 6, 3), value, np.uint8)) for value in (10, 90)]
    data = encoded(picture(), options.get("format", KINDS[kind]), save_all=True, append_images=more)
    image, dropped = denoise(data, kind)
    assert "2 further frames" in dropped and getattr(image, "n_frames", 1) == 1


@pytest.mark.parametrize("target", [".png", ".jpg"])
def test_text_is_named(target, denoise):
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "by hand")
    text.add_itxt("XML:com.adobe.xmp", "<x/>")
    _, dropped = denoise(encoded(picture(), "PNG", pnginfo=text), ".png", target)
    assert "XMP data" in dropped and "text" in dropped
    _, dropped = denoise(encoded(picture(), "JPEG", comment=b"by hand", xmp=b"<x/>"), ".jpg", target)
    assert "XMP data" in dropped and "text" in dropped


def test_an_unusual_gamma_is_named(denoise):
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", (100000).to_bytes(4, "big"))
    assert "gamma of 1" in denoise(encoded(picture(), "PNG", pnginfo=chunks))[1]
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", (45455).to_bytes(4, "big"))  # that of sRGB, which images without one are taken for
    assert denoise(encoded(picture(), "PNG", pnginfo=chunks))[1] == ""


def test_plain_files_lose_nothing_and_nothing_is_said(denoise):
    for kind in KINDS:
        image, dropped = denoise(encoded(picture(), KINDS[kind]), kind)
        assert dropped == "" and not {"icc_profile", "exif"} & set(image.info)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", camera_exif(1)[:40], b"Exif\0\0" + b"\xff" * 30], ids=["text", "cut", "ones"]
)
@pytest.mark.parametrize("kind", [".png", ".jpg", ".webp"])
def test_damaged_exif_data_is_named_and_stops_nothing(kind, exif, denoise, recwarn):
    image, dropped = denoise(encoded(picture(), KINDS[kind], exif=exif), kind)
    assert "EXIF data" in dropped and image.size == (6, 6)


def test_what_the_format_has_no_room_for_is_named(denoise):
    """JPEG's EXIF data end at 64 KiB."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 70000
    image, dropped = denoise(encoded(picture(), "PNG", exif=exif, dpi=(300, 300)), ".png", ".jpg")
    assert "EXIF data" in dropped and image.info["dpi"] == (300, 300)


def test_conversions_from_cmyk_are_told(denoise, tmp_path, make_run, capsys):
    (tmp_path / "in.jpg").write_bytes(encoded(picture("CMYK"), "JPEG"))
    run = make_run(channels=3)
    command.main(list(map(str, (run, tmp_path / "in.jpg", tmp_path / "o.png", "--sigma", "0.1", "--device", "cpu"))))
    assert "in.jpg is CMYK: converted to RGB" in capsys.readouterr().out


def test_pixels_are_those_without_metadata(denoise):
    plain, _ = denoise(encoded(picture(), "PNG"))
    rich, _ = denoise(encoded(picture(), "PNG", icc_profile=RGB_PROFILE, dpi=(300, 300), exif=camera_exif(1)))
    assert torch.equal(*(torch.from_numpy(np.array(image)) for image in (plain, rich)))
