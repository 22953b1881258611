"""Denoise an image file with a trained model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from cdn.cli.arguments import DEVICE, RUN, Option, make_parser, noise_level, pick_device, run_path, tile_side
from cdn.errors import CDNError
from cdn.images.image_files import check_writable, kind_of, read_image, write_image
from cdn.images.memory import advise_tile, fitting_tile, require_memory
from cdn.images.metadata import carry_over
from cdn.images.tiles import SMALLEST, in_tiles, split_tiles
from cdn.methods.whole_images import score_and_level
from cdn.model import Network, density
from cdn.model.capabilities import classifies, denoises, is_direct_denoiser, kind
from cdn.run_folder.weights import load

DESCRIPTION = """\
Denoise an image of any size with a trained model. The noise is assumed to be white and Gaussian; its level is
given with --sigma, or else estimated from the image, which works less well the more of its pixels were
clipped to black or white. The result is clipped and rounded to 8 bits. It keeps colour profile, resolution and
EXIF data of the input where they still hold, and a line says what it does not keep."""
EXAMPLES = """\
examples:
  python -m cdn.denoise runs/cifar10 noisy.png clean.png --sigma 25/255
  python -m cdn.denoise photographs photo.jpg clean.png --blind

The network normalizes by statistics of the whole image. In tiles they are those of each tile, so the result
is not that of the whole image, only close to it. Tiles are taken where --tile asks for them, and where the
whole image does not fit into memory, which a line says."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    check_writable(args.output, args.input)
    device = pick_device(args.device)
    model = load(args.run, device)
    if not denoises(model):
        raise CDNError(f"{args.run}: expected a model that denoises, got {kind(model)}")
    label = None if args.label is None else _class_index(args.label, model)
    y, note = read_image(args.input, model.config["in_channels"])
    _say(note)
    metadata = carry_over(args.input, kind_of(args.output), model.config["in_channels"])
    _say(f"of {args.input} is not carried over: {', '.join(metadata.dropped)}" if metadata.dropped else None)
    y = y.to(device)
    size = _tile(model, y, args.tile)
    with torch.no_grad():
        clean = _denoised(model, y, args.sigma, label, size)
    write_image(args.output, clean, metadata.kept)
    print(f"wrote {args.output}")


def _tile(model: Network, y: Tensor, asked: int | None) -> int:
    """Return the side of tiles, that of the image for none, and say what memory they take if it is much."""
    height, width = y.shape[2:]
    if asked is None:
        tile, sentence = fitting_tile(model, height, width, y.device)
    else:
        tile = asked
        sentence = require_memory(model, min(height, tile), min(width, tile), y.device, advise_tile(tile))
    _say(sentence)
    return tile or max(height, width)


def _denoised(model: Network, y: Tensor, sigma: float | None, label: int | None, size: int) -> Tensor:
    """Return a denoised image, tile by tile; without a noise level it is estimated, from the same score."""
    direct = is_direct_denoiser(model)
    blind = sigma is None and not direct
    _say("this model needs no noise level: --sigma is ignored" if direct and sigma else None)
    height, width = y.shape[2:]
    # The level is that of the score without a class.
    total = len(split_tiles(height, width, size)) * (2 if blind and label is not None else 1)
    with tqdm(total=total, unit="tile", leave=False, disable=total == 1 or not sys.stderr.isatty()) as bar:
        if blind:
            score, sigma = score_and_level(model, y, size, bar.update)
            bar.write(f"estimated noise level: {sigma:.4f} ({sigma * 255:.1f}/255)")
            if label is None:
                return y + sigma**2 * score

        def of_tile(tile: Tensor) -> Tensor:
            clean = density.denoise(model, tile, sigma or 0.0, label)
            bar.update()
            return clean

        return in_tiles(of_tile, y, size)


def _class_index(text: str, model: Network) -> int:
    if not classifies(model):
        raise CDNError(f"--label {text}: this model knows no classes")
    if text in model.classes:
        return model.classes.index(text)
    count = model.config["num_classes"]
    if text.isdecimal() and int(text) < count:
        return int(text)
    names = f"one of {', '.join(model.classes)}" if 0 < len(model.classes) <= 20 else "the name of a class"
    raise CDNError(f"--label: expected {names} or a number in 0..{count - 1}, got {text!r}")


def _say(sentence: str | None) -> None:
    if sentence:
        print(sentence)


def _parser() -> argparse.ArgumentParser:
    text = (
        f"denoise overlapping tiles of N x N pixels, N >= {SMALLEST} (default: the image as a whole, if memory allows)"
    )
    options = (
        Option("--label", str, None, "denoise given this class, a name or a number (default: none)"),
        Option("--tile", tile_side, None, text),
        DEVICE,
    )
    parser = make_parser("cdn.denoise", DESCRIPTION, options, epilog=EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=run_path, help=RUN)
    parser.add_argument("input", metavar="INPUT", type=Path, help="noisy image, 8 bits per channel, opaque")
    text = ".png, .bmp, .tif, .webp (lossless) or .jpg; an existing file is replaced, unless it is the input"
    parser.add_argument("output", metavar="OUTPUT", type=Path, help=f"denoised image: {text}")
    level = parser.add_mutually_exclusive_group()
    text = "standard deviation of the noise, for images in [0, 1]: 0.1 or 25/255"
    level.add_argument("--sigma", metavar="SIGMA", type=noise_level, help=text)
    text = "estimate the noise level and print it (default without --sigma)"
    level.add_argument("--blind", action="store_true", help=text)
    return parser
