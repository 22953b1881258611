r"""Denoise whole photographs, of any size, with a model that was trained on small images or patches.

    python -m cdn.experiments.photographs RUN --images FOLDER [--tile 256]

White Gaussian noise is added to every image of the folder (PNG, JPEG, WebP or BMP; grey if the model is) and taken off
again, once with the noise level known and once with an estimate of it from the noisy image. Prints PSNR and SSIM per
noise level and PSNR per photograph, and writes report.json and picture.png: some photographs, with their busiest
squares at every level. Nothing is clipped before it is measured. Photographs are denoised one at a time, whatever
--batch-size.

To train on patches of larger pictures, sorted into folders split/class/*:

    python -m cdn.train --data imagefolder --data-dir PHOTOS --image-size 256 --crop-size 48 --crop-padding 0 \\
        --objective denoising
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from cdn.cli.arguments import positive_int, run_command
from cdn.commands.denoise import parse_tile
from cdn.errors import CDNError
from cdn.evaluation import psnr, ssim
from cdn.evaluation.evaluate import EVALUATION
from cdn.experiments.runner import Experiment, Results, make_parser, text_table
from cdn.images.files import find_images, read_image
from cdn.images.memory import advise_tile, require_memory
from cdn.methods.whole_images import Denoised, denoise_photograph
from cdn.model.modes import evaluating
from cdn.pictures.grid import draw_grid
from cdn_kernels import Noise

SIGMAS = (15, 25, 50)
CROP = 96
METRICS = {"psnr": psnr, "ssim": ssim}
# A square of an image: its rows and its columns.
Box = tuple[slice, slice]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    paths = find_images(args.images)[: args.limit]
    experiment = Experiment(args)
    model, device = experiment.model, experiment.device
    if not experiment.run.denoises:
        raise CDNError(f"{args.run}: expected a run that was trained to denoise, this one only classifies")
    rows, shown = [], []
    with evaluating(model, args.precision), torch.no_grad():
        for number, path in enumerate(tqdm(paths, unit="photograph", leave=False, disable=not experiment.progress)):
            x, _ = read_image(path, model.config["in_channels"])
            x = x.to(device)
            height, width = (min(side, args.tile or side) for side in x.shape[2:])
            require_memory(model, height, width, device, advise_tile(args.tile))
            start = time.perf_counter()
            noise = Noise(args.seed, EVALUATION + number)
            results = {sigma: denoise_photograph(model, x, sigma / 255, noise, args.tile) for sigma in SIGMAS}
            seconds = (time.perf_counter() - start) / len(SIGMAS)
            rows.append(
                dict(
                    name=path.name,
                    size=list(x.shape[2:]),
                    seconds=seconds,
                    levels={sigma: _measure(result, x) for sigma, result in results.items()},
                )
            )
            if number < args.show:
                shown.append((path.stem, x, results))
    means = {sigma: _mean([row["levels"][sigma] for row in rows]) for sigma in SIGMAS}
    print(f"{len(rows)} photographs, {_mean(rows, 'seconds'):.1f} seconds each and noise level")
    print(summary(means), per_photograph(rows), sep="\n\n")
    experiment.save_figure(picture(shown))
    experiment.write(dict(mean=means, photographs=rows))


def summary(means: dict[int, Results]) -> str:
    """Return the table of means: one row per noise level."""
    header = [
        "sigma",
        *(f"{name} {how}" for name in ("PSNR dB", "SSIM") for how in ("noisy", "known", "blind")),
        "estimated",
    ]
    return text_table(
        header,
        [
            [
                f"{sigma}/255",
                *(row[f"{name}_{how}"] for name in METRICS for how in ("noisy", "known", "blind")),
                row["estimated"],
            ]
            for sigma, row in means.items()
        ],
    )


def per_photograph(rows: Sequence[Results]) -> str:
    """Return the table of PSNR in dB per photograph: blind, and known in so far as the model takes a noise level."""
    known = rows[0]["levels"][SIGMAS[0]]["psnr_known"] is not None
    hows = ("noisy", "known", "blind") if known else ("noisy", "blind")
    header = ["PSNR dB", *(f"{sigma} {how}" for sigma in SIGMAS for how in hows)]
    return text_table(
        header,
        [[row["name"], *(row["levels"][sigma][f"psnr_{how}"] for sigma in SIGMAS for how in hows)] for row in rows],
    )


def picture(shown: Sequence[tuple[str, Tensor, dict[int, Denoised]]]) -> Figure:
    """Draw photographs, and their busiest squares at every noise level.

    Args:
        shown: a list of (name, x [1, C, H, W], dict from noise levels in grey levels to
            :class:`cdn.methods.whole_images.Denoised`).
    """
    boxes = [_busiest(x) for _, x, _ in shown]
    middle = SIGMAS[len(SIGMAS) // 2]
    denoised = lambda result: result.blind if result.known is None else result.known
    crop = lambda images: [image[0, :, rows, columns] for image, (rows, columns) in zip(images, boxes)]
    column = lambda title, images, clean: (
        title,
        images,
        [f"{float(psnr(a[None], b[None])):.1f} dB" for a, b in zip(images, clean)] if clean else (),
    )
    wholes = lambda images: [image[0] for image in images]
    x = [image for _, image, _ in shown]
    whole = wholes(x)
    groups = [
        [column("photograph", [_framed(image, box) for image, box in zip(whole, boxes)], None)]
        + [
            column(title.format(middle), wholes([pick(results[middle]) for _, _, results in shown]), whole)
            for title, pick in (("σ = {}/255", lambda r: r.noisy), ("denoised", denoised))
        ]
    ]
    groups.append([column("detail", crop(x), None)])
    for sigma in SIGMAS:
        results = [results[sigma] for _, _, results in shown]
        groups.append(
            [
                column(f"σ = {sigma}/255", crop([r.noisy for r in results]), crop(x)),
                column("denoised", crop([denoised(r) for r in results]), crop(x)),
            ]
        )
    return draw_grid(groups, [name for name, _, _ in shown], inches=1.5)


def _measure(result: Denoised, x: Tensor) -> Results:
    """Return the figures of one photograph at one noise level; None for what the model cannot give."""
    images = dict(noisy=result.noisy, known=result.known, blind=result.blind)
    figures = {
        f"{name}_{how}": None if image is None else float(metric(image, x))
        for name, metric in METRICS.items()
        for how, image in images.items()
    }
    return figures | dict(estimated=None if result.sigma is None else 255 * result.sigma)


def _mean(rows: Sequence[Results], key: str | None = None) -> Any:
    """Return the mean of a figure over rows, or of all figures; None where they are None."""
    if key is None:
        return {key: _mean(rows, key) for key in rows[0]}
    values = [row[key] for row in rows]
    return None if None in values else sum(values) / len(values)


def _busiest(x: Tensor) -> Box:
    """Return the square of the largest variance, as slices of rows and columns."""
    side = min(CROP, *x.shape[2:])
    step = max(side // 4, 1)
    squares = x.mean(1).unfold(1, side, step).unfold(2, side, step)
    variance = squares.flatten(3).var(3, correction=0)[0]
    row, column = divmod(int(variance.argmax()), variance.shape[1])
    return slice(row * step, row * step + side), slice(column * step, column * step + side)


def _framed(image: Tensor, box: Box) -> Tensor:
    """Return a copy of an image [C, H, W] with a white frame around a square."""
    framed, (rows, columns) = image.clone(), box
    thickness = max(min(image.shape[1:]) // 150, 1)
    inner = tuple(slice(span.start + thickness, span.stop - thickness) for span in box)
    framed[:, rows, columns] = 1
    framed[:, inner[0], inner[1]] = image[:, inner[0], inner[1]]
    return framed


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("photographs", __doc__, limit=24)
    parser.add_argument("--images", metavar="FOLDER", required=True, help="folder of the photographs")
    parser.add_argument(
        "--tile",
        metavar="N",
        type=parse_tile,
        help="denoise overlapping tiles of N x N pixels, to save memory: close to the image as a "
        "whole, the default, and not equal",
    )
    parser.add_argument(
        "--show",
        metavar="N",
        type=positive_int,
        default=3,
        help="photographs in the picture, from the first on (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
