"""One rule for every reader of image files: upright, opaque, 8 bits per channel, or one sentence."""

import ast
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageOps

import cdn
from cdn.commands import classify, denoise
from cdn.data import load_dataset
from cdn.errors import CDNError, DataError
from cdn.experiments import photographs
from cdn.images.decoder import decode
from cdn.images.image_files import read_image
from cdn.methods.detection.outlier_sets import read_outliers
from cdn.model import density
from cdn.run_folder.weights import save_model
from tests.data.image_files import CLEAR, PIXELS, SIDE, encoded, oriented, picture, png, ppm, tiff

KINDS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "PPM": ".ppm"}
OPAQUE_MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"),
    "PPM": ("1", "L", "RGB"),
}
READ = {f"{kind} {mode}{KINDS[kind]}": encoded(picture(mode), kind) for kind in KINDS for mode in OPAQUE_MODES[kind]}
READ |= {
    f"{kind} turned {turn}{KINDS[kind]}": oriented(kind, turn)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF")
    for turn in range(1, 9)
}
READ |= {
    "palette, opaque as it says.png": encoded(picture("P"), "PNG", transparency=b"\xff" * 256),
    "a transparent colour it does not have.png": encoded(picture(), "PNG", transparency=(1, 2, 3)),
    "PPM of 15 levels.ppm": ppm(3, 15),
    "TIFF of 8 bits.tif": tiff(8, 3),
    "animated.webp": encoded(picture(), "WEBP", save_all=True, append_images=[picture("L")]),
    "animated.png": encoded(picture(), "PNG", save_all=True, append_images=[picture("L")]),
    "of two pictures.jpg": encoded(picture(), "MPO", save_all=True, append_images=[picture("L")]),
    "of two pages.tif": encoded(picture(), "TIFF", save_all=True, append_images=[picture("L")]),
}
YCBCR = {"TIFF YCbCr.tif": encoded(picture("YCbCr"), "TIFF")}
PILLOW_READS_YCBCR = (
    int(PIL.__version__.partition(".")[0]) >= 13
)  # before, TIFF files that it wrote itself were cut short
READ |= YCBCR if PILLOW_READS_YCBCR else {}
DEEP, SEEN_THROUGH, NO_IMAGE = "expected 8 bits per channel, got", "got transparent pixels", "expected a readable image"
REFUSED = {
    **{f"PNG of 16 bits, colour {colour}.png": (png(16, colour), DEEP) for colour in (0, 2, 4, 6)},
    **{f"TIFF of {bits} bits, {n} samples.tif": (tiff(bits, n), DEEP) for bits, n in ((16, 1), (32, 1), (16, 3))},
    "TIFF of 32 bits, 3 samples.tif": (tiff(32, 3), NO_IMAGE),
    "TIFF of floats.tif": (tiff(32, 1, sample_format=3), DEEP),
    "PGM of 16 bits.ppm": (ppm(1, 65535), DEEP),
    "PGM of 10 bits.ppm": (ppm(1, 1023), DEEP),
    "PPM of 16 bits.ppm": (ppm(3, 65535), DEEP),
    "PPM of 10 bits.ppm": (ppm(3, 1023), DEEP),
    **{
        f"{kind} {mode}, transparent{KINDS[kind]}": (encoded(picture(mode, CLEAR), kind), SEEN_THROUGH)
        for kind, mode in [
            *(("PNG", mode) for mode in ("LA", "RGBA")),
            *(("TIFF", mode) for mode in ("LA", "PA", "RGBA")),
            ("WEBP", "RGBA"),
        ]
    },
    "palette, transparent.png": (encoded(picture("P"), "PNG", transparency=b"\xfe" * 256), SEEN_THROUGH),
    "grey, transparent.png": (png(8, 0, transparency=b"\0\x80"), SEEN_THROUGH),
    "black and white, transparent.png": (png(1, 0, transparency=b"\0\1"), SEEN_THROUGH),
    "colour, transparent.png": (png(8, 2, transparency=b"\0\x80" * 3), SEEN_THROUGH),
    "text.png": (b"no image\n", NO_IMAGE),
    "empty.jpg": (b"", NO_IMAGE),
    "GIF.png": (encoded(picture("P"), "GIF"), NO_IMAGE),
    "no pixels.png": (png(8, 2, size=(0, 0)), NO_IMAGE),
    "no height.ppm": (b"P6 4 0 255\n", NO_IMAGE),
    **{name: (data, NO_IMAGE) for name, data in YCBCR.items() if not PILLOW_READS_YCBCR},
    "huge.png": (png(8, 2, size=(30000, 30000), body=bytes(9)), "DecompressionBomb"),
    **{
        f"cut short{KINDS[kind]}": (data[: len(data) // 2], NO_IMAGE)
        for kind in KINDS
        for data in [encoded(picture(pixels=PIXELS.repeat(9, 0).repeat(9, 1)), kind)]
    },
}


def training(path, work, monkeypatch):
    for split in ("train", "val"):
        folder = work / "data" / split / "any"
        folder.mkdir(parents=True)
        (folder / path.name).write_bytes(path.read_bytes())
    images, _ = load_dataset("imagefolder", work / "data", image_size=SIDE).train.load(torch.arange(1))
    return images.float() / 255


def denoise_command(path, work, monkeypatch):
    monkeypatch.setattr(density, "denoise", lambda model, y, sigma, label: y)
    out = work / "denoised.png"
    denoise.main([str(work / "run"), str(path), str(out), "--sigma", "0.1", "--device", "cpu"])
    return torch.from_numpy(np.array(Image.open(out))).permute(2, 0, 1)[None].float() / 255


def classify_command(path, work, monkeypatch):
    seen = []
    monkeypatch.setattr(classify, "classify", lambda model, y, *_: seen.append(y) or dict(image="", classes=[]))
    with redirect_stderr(StringIO()) as printed:
        failed = classify.main([str(work / "run"), str(path), "--device", "cpu"])
    if failed:
        raise DataError(printed.getvalue().removeprefix("error: ").removesuffix("\n"))
    return seen[0]


def photographs_experiment(path, work, monkeypatch):
    (work / "photographs").mkdir()
    (work / "photographs" / path.name).write_bytes(path.read_bytes())
    session = SimpleNamespace(
        args=SimpleNamespace(images=work / "photographs", limit=1, tile=None, seed=0, show=0),
        model=SimpleNamespace(config=dict(in_channels=3)),
        device=torch.device("cpu"),
        evaluating=torch.no_grad,
        bar=lambda things, **_: things,
    )
    monkeypatch.setattr(photographs, "require_memory", lambda *_: None)

    class Seen(Exception):
        pass

    def see(model, x, *_):
        raise Seen(x)

    monkeypatch.setattr(photographs, "denoise_photograph", see)
    with pytest.raises((Seen, CDNError)) as found:
        photographs.measure(session)
    if isinstance(found.value, CDNError):
        raise found.value
    return found.value.args[0]


def outliers(path, work, monkeypatch):
    (work / "outliers").mkdir()
    (work / "outliers" / path.name).write_bytes(path.read_bytes())
    return read_outliers(work / "outliers", (3, SIDE, SIDE), 1)


READERS = {
    reader.__name__: reader
    for reader in (training, denoise_command, classify_command, photographs_experiment, outliers)
}


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """The weights of a run in colour, which the commands want to see before any image."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = cdn.GradResNet(2, 3, width=8, blocks=(1,))
    save_model(folder / "model.safetensors", model, ("a", "b"))
    (folder / "config.json").write_text('{"model": {}, "data": {"shape": [3, 6, 6]}}')
    return folder


@pytest.fixture
def seen_by(tmp_path, a_run, monkeypatch):
    """Return a function from a reader to what it makes of a file: an image, or the last words of its error."""

    def see(reader, name, data):
        work = tmp_path / reader
        work.mkdir()
        (work / "run").symlink_to(a_run)
        path = tmp_path / name
        path.write_bytes(data)
        with monkeypatch.context() as patches:
            try:
                return READERS[reader](path, work, patches)
            except DataError as error:
                assert "\n" not in str(error)
                return str(error).partition(f"{name}: ")[2]

    return see


def reference(data, tmp_path, name):
    """Decode a file the plain way, which is right for opaque pictures of 8 bits."""
    (tmp_path / name).write_bytes(data)
    with Image.open(tmp_path / name) as image:
        upright = ImageOps.exif_transpose(image)
        pixels = np.array((upright.convert("RGBA") if upright.mode == "P" else upright).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("name", READ)
def test_every_reader_sees_the_same_image(name, seen_by, tmp_path):
    expected = reference(READ[name], tmp_path, "expected")
    for reader in READERS:
        found = seen_by(reader, name, READ[name])
        assert torch.is_tensor(found), (reader, found)
        assert found.shape == expected.shape and torch.equal(found, expected), reader


@pytest.mark.parametrize("name", REFUSED)
def test_every_reader_refuses_with_the_same_sentence(name, seen_by):
    data, cause = REFUSED[name]
    found = {reader: seen_by(reader, name, data) for reader in READERS}
    assert not any(map(torch.is_tensor, found.values())), found
    assert cause in found["training"] and set(found.values()) == {found["training"]}, found


@pytest.mark.parametrize("turn", range(2, 9))
def test_orientation_is_applied_to_pixels(turn, seen_by):
    """What the tag says, written out: the reference of the other tests is Pillow's."""
    upright = torch.from_numpy(PIXELS).permute(2, 0, 1)[None].float() / 255
    moved = {
        2: lambda x: x.flip(3),
        3: lambda x: x.flip((2, 3)),
        4: lambda x: x.flip(2),
        5: lambda x: x.mT,
        6: lambda x: x.rot90(-1, (2, 3)),
        7: lambda x: x.mT.flip((2, 3)),
        8: lambda x: x.rot90(1, (2, 3)),
    }[turn](upright)
    assert torch.equal(seen_by("training", "turned.png", oriented("PNG", turn)), moved)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(("width", "height"), [(11, 6), (6, 11), (20, 13), (13, 21), (90, 70)])
def test_training_and_the_commands_cut_and_resize_alike(width, height, suffix, tmp_path, seen_by):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    format, name = dict(png="PNG", jpg="JPEG")[suffix], f"a.{suffix}"
    trained = seen_by("training", name, encoded(picture(pixels=pixels), format))
    assert torch.equal(read_image(tmp_path / name, 3, SIDE)[0], trained)
    assert torch.equal(seen_by("outliers", name, (tmp_path / name).read_bytes()), trained)


@pytest.mark.parametrize(
    ("width", "height", "at_least", "decoded"),
    [
        (96, 64, None, (96, 64)),
        (96, 64, 64, (96, 64)),
        (96, 64, 33, (96, 64)),
        (96, 64, 32, (48, 32)),
        (96, 64, 8, (12, 8)),
        (96, 64, 1, (12, 8)),
        (97, 65, 16, (25, 17)),
    ],
)
def test_jpeg_images_are_decoded_no_larger_than_needed(width, height, at_least, decoded, tmp_path):
    ramp = np.add.outer(np.arange(height), np.arange(width)).astype(np.uint8)
    for format, size in (("JPEG", decoded), ("PNG", (width, height))):
        Image.fromarray(ramp).save(tmp_path / "a", format, **dict(quality=95) if format == "JPEG" else {})
        image = decode(tmp_path / "a", at_least=at_least).image
        assert image.size == size
        whole = decode(tmp_path / "a").image.resize(size, Image.Resampling.BOX)
        assert np.abs(np.asarray(image, int) - np.asarray(whole, int)).max() <= 6


def test_damaged_exif_data_turns_nothing(seen_by):
    data = encoded(picture(), "PNG", exif=b"Exif\0\0nonsense")
    assert torch.equal(seen_by("training", "a.png", data), torch.from_numpy(PIXELS).permute(2, 0, 1)[None] / 255)


def test_memory_that_is_not_there_is_told_with_the_files_name(tmp_path, monkeypatch):
    def convert(*_):
        raise MemoryError

    path = tmp_path / "large.png"
    path.write_bytes(encoded(picture(), "PNG"))
    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(DataError, match="large.png: .*memory"):
        read_image(path, 3)


def test_there_is_one_decoder():
    """Any other call of Image.open is a second rule."""
    package = Path(cdn.__file__).parent
    callers = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node.value).endswith("Image")
    ]
    assert callers == ["images/decoder.py"]
