"""Image files that Pillow does not write, or not the way a test needs them, as bytes."""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

SIDE = 6
PIXELS = np.random.default_rng(7).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
OPAQUE, CLEAR = 255, 254  # one grey level less than opaque is transparent


def picture(mode="RGB", alpha=OPAQUE, pixels=PIXELS):
    """Return a picture of random pixels; of one pixel the alpha, if there is one, is what is given."""
    image = Image.fromarray(pixels)
    if mode == "PA":
        image = image.convert("P")
    image = image.convert(mode)
    if mode in ("LA", "PA", "RGBA"):
        channel = Image.new("L", image.size, OPAQUE)
        channel.putpixel((2, 1), alpha)
        image.putalpha(channel)
    return image


def encoded(image, kind, **options):
    """Return an image as the bytes of a file."""
    file = BytesIO()
    image.save(file, kind, **(dict(lossless=True) if kind == "WEBP" else {}) | options)
    return file.getvalue()


def oriented(kind, orientation):
    """Return a picture that its EXIF data says has to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), kind, exif=exif)


def png(depth, colour, size=(SIDE, SIDE), transparency=b"", body=None):
    """Return a PNG file of any depth and colour type, grey in the middle of the range."""
    width, height = size
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = b"\0" + b"\x80" * ((depth * samples * width + 7) // 8)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"tRNS", transparency),
        (b"IDAT", zlib.compress(body or row * height)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
        if data or kind == b"IEND"
    )


def tiff(bits, samples, sample_format=1):
    """Return an uncompressed TIFF file of so many bits per sample, all of them zero."""
    data = bytes(SIDE * SIDE * samples * bits // 8)
    extra = struct.pack(f"<{samples}H", *[bits] * samples).ljust(2 * samples)
    tags = [
        (256, 3, 1, SIDE),
        (257, 3, 1, SIDE),
        (258, 3, samples, bits if samples == 1 else 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1 if samples < 3 else 2),
        (273, 4, 1, 8 + len(extra)),
        (277, 3, 1, samples),
        (278, 3, 1, SIDE),
        (279, 4, 1, len(data)),
        (339, 3, 1, sample_format),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(extra) + len(data)) + extra + data + directory


def ppm(samples, highest):
    """Return a PGM or PPM file whose values go up to `highest`."""
    width = 1 if highest < 256 else 2
    values = (highest // 2).to_bytes(width, "big") * (SIDE * SIDE * samples)
    return f"P{5 if samples == 1 else 6} {SIDE} {SIDE} {highest}\n".encode() + values
