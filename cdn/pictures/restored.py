"""Images restored from measurements."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cdn.evaluation.metrics import psnr
from cdn.files import Results
from cdn.pictures.grid import draw_grid
from cdn.pictures.tables import text_table

SHORT = {"missing-pixels": "pixels", "super-resolution": "super-res.", "compressive-sensing": "compressive"}
SHOWN = 3  # images in the picture


def restoration_table(results: Results) -> str:
    """Return how well each problem is solved, as text."""
    kinds, metrics = ("pseudo-inverse", "grey", "sample", "mean"), {"psnr": ".2f", "ssim": ".3f"}
    header = [f"{metric.upper()} {kind}" for metric in metrics for kind in kinds]
    rows = []
    for problem, result in results.items():
        cells = [f"{result[metric][kind]:{form}}" for metric, form in metrics.items() for kind in kinds]
        rows.append([problem, f"{result['measured']:.1%}", *cells, result["steps"], result["seconds"]])
    return text_table(["problem", "measured", *header, "steps", "seconds"], rows)


def restoration_figure(x: Tensor, tiles: dict[str, dict[str, Tensor]], samples: int) -> Figure:
    """Draw a row per problem and a group per image; tiles carry their PSNR in dB."""
    titles = {
        "measured": "measured",
        "pseudo-inverse": "pseudo-\ninverse",
        "sample": "one\nsample",
        "mean": f"mean\nof {samples}",
    }
    groups = []
    for i, clean in enumerate(x):
        group: list[tuple[str, Tensor, Sequence[str]]] = [("clean", clean.expand(len(tiles), *clean.shape), ())]
        for name, title in titles.items():
            column = torch.stack([images[name][i] for images in tiles.values()])
            values = psnr(column, clean.expand_as(column)).tolist()
            group.append((title, column, [f"{value:.1f}" for value in values] if name != "measured" else ()))
        groups.append(group)
    return draw_grid(groups, [SHORT.get(problem, problem) for problem in tiles])
