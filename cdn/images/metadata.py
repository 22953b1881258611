"""Metadata of image files, and which of them still hold for an image that is made of the file."""

from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image

from cdn.images.decoder import GREY, MODES, ORIENTATION, opened

# What EXIF data say of the photograph and not of how a file stores it, which TIFF puts among them.
DESCRIPTIVE = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
# Sides and places in pixels, which do not hold for an image that was turned; what points to other places of the file.
WIDTH, HEIGHT, SUBJECT_AREA, SUBJECT_LOCATION, INTEROPERABILITY = 0xA002, 0xA003, 0x9214, 0xA214, 0xA005
POSITIONS = (WIDTH, HEIGHT, SUBJECT_AREA, SUBJECT_LOCATION, INTEROPERABILITY)
MAKER_NOTE = ExifTags.Base.MakerNote
SPACES = {1: b"GRAY", 3: b"RGB "}  # as colour profiles name them
QUARTER_TURNS = (5, 6, 7, 8)  # orientations that make rows columns
XMP = "XML:com.adobe.xmp"  # the name of a text in PNG files
SRGB_GAMMA = 0.45455


class Metadata(NamedTuple):
    """What :func:`carry_over` found.

    Attributes:
        kept: options for Pillow's ``save``.
        dropped: what is not kept, in words.
    """

    kept: dict[str, Any]
    dropped: list[str]


def carry_over(source: str | Path, kind: str, channels: int) -> Metadata:
    """Find what a file says beside its pixels that holds for an image made of its first frame, upright.

    Kept are the colour profile, if it is of the colours that the image will have, the resolution, and of EXIF data
    what describes the photograph; all that the format of the output takes.

    Args:
        source: an image file.
        kind: Pillow's name of the format that the image will have.
        channels: 1 if it will be grey, 3 if in colour.

    Raises:
        DataError: the file cannot be read.
    """
    dropped: list[str] = []
    with opened(source) as image:
        mode, frames = image.mode, getattr(image, "n_frames", 1)
        # Read before the pixels, with which some formats turn.
        exif, orientation = _describe(image, dropped)
        text, info = set(getattr(image, "text", ())), image.info
    found: dict[str, tuple[str, Any]] = {}
    if info.get("icc_profile"):
        space = info["icc_profile"][16:20]
        if mode == "CMYK" or space != SPACES[channels] or (mode in GREY) != (channels == 1):
            dropped.append("the colour profile, which is of other colours")
        else:
            found["icc_profile"] = "the colour profile", info["icc_profile"]
    if info.get("dpi"):
        dpi = tuple(map(_number, info["dpi"]))
        found["dpi"] = "the resolution", dpi[::-1] if orientation in QUARTER_TURNS else dpi
    if exif is not None:
        found["exif"] = "EXIF data", exif
    kept = {}
    for option, (name, value) in found.items():
        if _survives(kind, MODES[channels], option, value):
            kept[option] = value
        else:
            dropped.append(f"{name}, for which {kind} has no room")
    if "xmp" in info or XMP in text:
        dropped.append("XMP data")
    if "comment" in info or text - {XMP}:
        dropped.append("text")
    gamma = info.get("gamma")
    if gamma is not None and abs(gamma - SRGB_GAMMA) > 1e-3:
        dropped.append(f"the gamma of {gamma:g}")
    if frames > 1:
        dropped.append(f"{frames - 1} further frame{'s' if frames > 2 else ''}")
    return Metadata(kept, dropped)


def _describe(image: Image.Image, dropped: list[str]) -> tuple[bytes | None, int]:
    """Return EXIF data with what describes the photograph, None if nothing does, and the orientation.

    Adds to a list, in words, what is left out.
    """
    kept = Image.Exif()
    try:
        exif = image.getexif()
        if "exif" in image.info and not len(exif):
            raise ValueError("EXIF data without an entry")
        orientation = exif.get(ORIENTATION, 1)
        kept.update({tag: exif[tag] for tag in DESCRIPTIVE if tag in exif})
        for group in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            entries = dict(exif.get_ifd(group))
            if entries.pop(MAKER_NOTE, None) is not None:
                dropped.append("the maker's notes")
            for tag in POSITIONS:
                entries.pop(tag, None)
            if entries:
                kept[group] = entries
        # The second directory of a TIFF file is its second page.
        if image.format != "TIFF" and exif.get_ifd(ExifTags.IFD.IFD1):
            dropped.append("the thumbnail")
        return (kept.tobytes() if len(kept) else None), orientation
    except Exception:  # the image is kept without them, and decode() does not turn it either
        dropped.append("EXIF data, which are damaged")
        return None, 1


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0


def _survives(kind: str, mode: str, option: str, value: Any) -> bool:
    """Tell whether a format can hold what an option of ``save`` says, by a try with a single pixel."""
    file = BytesIO()
    try:
        Image.new(mode, (1, 1)).save(file, kind, **{option: value})
        with opened(file, (kind,)) as image:
            if option == "dpi":
                return max(abs(a - b) for a, b in zip(image.info["dpi"], value)) < 1
            if option == "exif":
                there, wanted, group = image.getexif(), Image.Exif(), ExifTags.IFD.Exif
                wanted.load(value)
                described = all(there[tag] == wanted[tag] for tag in DESCRIPTIVE if tag in wanted)
                return described and there.get_ifd(group).keys() == wanted.get_ifd(group).keys()
            return image.info[option] == value
    except Exception:  # values that do not fit fail in every way there is
        return False
