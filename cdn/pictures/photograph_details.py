"""Photographs, noisy and denoised."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from cdn.evaluation import psnr
from cdn.files import Results
from cdn.methods.whole_images import METRICS, Denoised
from cdn.model.inputs import sigma_text
from cdn.pictures.grid import draw_grid
from cdn.pictures.tables import text_table

CROP = 96
# A square of an image: its rows and its columns.
Box = tuple[slice, slice]


def means_table(means: dict[str, Results]) -> str:
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
                sigma,
                *(row[f"{name}_{how}"] for name in METRICS for how in ("noisy", "known", "blind")),
                row["estimated"] if row["estimated"] is None else sigma_text(row["estimated"]),
            ]
            for sigma, row in means.items()
        ],
    )


def per_photograph(rows: Sequence[Results]) -> str:
    """Return the table of PSNR in dB per photograph: blind, and known in so far as the model takes a noise level."""
    levels = rows[0]["levels"]
    known = all(level["psnr_known"] is not None for level in levels.values())
    hows = ("noisy", "known", "blind") if known else ("noisy", "blind")
    header = ["PSNR dB", *(f"{sigma} {how}" for sigma in levels for how in hows)]
    return text_table(
        header,
        [[row["name"], *(row["levels"][sigma][f"psnr_{how}"] for sigma in levels for how in hows)] for row in rows],
    )


def photographs_figure(shown: Sequence[tuple[str, Tensor, dict[str, Denoised]]]) -> Figure:
    """Draw photographs, and their busiest squares at every noise level.

    Args:
        shown: a list of (name, x [1, C, H, W], dict from noise levels to
            :class:`cdn.methods.whole_images.Denoised`).
    """
    boxes = [_busiest(x) for _, x, _ in shown]
    sigmas = list(shown[0][2])
    middle = sigmas[len(sigmas) // 2]
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
            for title, pick in (("σ = {}", lambda r: r.noisy), ("denoised", denoised))
        ]
    ]
    groups.append([column("detail", crop(x), None)])
    for sigma in sigmas:
        results = [results[sigma] for _, _, results in shown]
        groups.append(
            [
                column(f"σ = {sigma}", crop([r.noisy for r in results]), crop(x)),
                column("denoised", crop([denoised(r) for r in results]), crop(x)),
            ]
        )
    return draw_grid(groups, [name for name, _, _ in shown], inches=1.5)


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
