"""Restore test images from a few linear measurements, with the denoiser of a run as the only prior.

    python -m cdn.experiments.restoration runs/cifar10 --precision bf16
    python -m cdn.experiments.restoration runs/digits --problems inpainting deblurring --limit 100 --samples 8

Samples by algorithm 2 of Kadkhodaie & Simoncelli (arXiv 2007.13640) solve five problems with one network that was
trained for none of them. Beside PSNR and SSIM of one sample and of the mean of several stand those of the
pseudo-inverse, the shortest image with the same measurements, and of the one closest to mid-grey. Writes report.json
and picture.png.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import count

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from cdn.cli.arguments import fraction, positive_float, positive_int, run_command
from cdn.errors import CDNError
from cdn.evaluation.metrics import psnr, ssim
from cdn.experiments.runner import Experiment, Results, make_parser, text_table
from cdn.methods.prior.inverse_problems import restore
from cdn.methods.prior.operators import (
    CompressiveSensing,
    Deblurring,
    Inpainting,
    MissingPixels,
    Operator,
    SuperResolution,
)
from cdn.methods.prior.residual import blind_residual
from cdn.model.modes import evaluating
from cdn.pictures.grid import draw_grid
from cdn_kernels import Noise

PROBLEMS: dict[str, Callable[[Sequence[int], argparse.Namespace], Operator]] = {
    "inpainting": lambda shape, args: Inpainting(shape, args.block or max(min(shape[1:]) * 3 // 8, 1)),
    "missing-pixels": lambda shape, args: MissingPixels(shape, args.ratio, args.seed),
    "super-resolution": lambda shape, args: SuperResolution(shape, args.factor),
    "deblurring": lambda shape, args: Deblurring(shape, args.blur),
    "compressive-sensing": lambda shape, args: CompressiveSensing(shape, args.ratio, args.seed),
}
SHORT = {"missing-pixels": "pixels", "super-resolution": "super-res.", "compressive-sensing": "compressive"}
SHOWN = 3  # images in the picture


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    experiment = Experiment(args)
    _check(experiment)
    x, _ = experiment.test_images(exact=True)
    if len(x) == 0:
        raise CDNError(f"{args.run}: expected exact test images to measure, but all are marked as inexact")
    operators = {problem: _operator(problem, x.shape[1:], args) for problem in args.problems}
    shown = torch.linspace(0, len(x) - 1, min(SHOWN, len(x))).round().long()
    results, tiles = {}, {}
    batches = -(-len(x) // args.batch_size)
    with (
        evaluating(experiment.model, args.precision),
        torch.no_grad(),
        tqdm(
            total=len(operators) * batches * args.samples,
            unit="restoration",
            leave=False,
            disable=not experiment.progress,
        ) as bar,
    ):
        for problem, operator in operators.items():
            bar.set_description(problem)
            results[problem], images = _solve(experiment.model, operator, x, args, bar)
            tiles[problem] = {title: column[shown] for title, column in images.items()}
    print(f"{len(x)} test images of {experiment.run.dataset.name}, {args.samples} samples each")
    print(
        text_table(
            [
                "problem",
                "measured",
                *(
                    f"{metric} {name}"
                    for metric in ("PSNR", "SSIM")
                    for name in ("pseudo-inverse", "grey", "sample", "mean")
                ),
                "steps",
                "seconds",
            ],
            [_row(problem, result) for problem, result in results.items()],
        )
    )
    experiment.save_figure(_picture(x[shown], tiles, args.samples))
    experiment.write(results)


def _solve(
    model: nn.Module, operator: Operator, x: Tensor, args: argparse.Namespace, bar: tqdm
) -> tuple[Results, dict[str, Tensor]]:
    """Measure images, restore them several times, and return the figures and the images by name."""
    start = time.perf_counter()
    residual, numbers = blind_residual(model), count()
    columns: dict[str, list[Tensor]] = {name: [] for name in ("measured", "pseudo-inverse", "grey", "sample", "mean")}
    errors: list[Tensor] = []
    finished: list[Tensor] = []
    steps = 0
    for part in x.split(args.batch_size):
        m = operator.forward(part)
        samples = []
        for _ in range(args.samples):
            # Far apart, because every step of a restoration takes an offset of its own.
            restored = restore(
                residual,
                operator,
                m,
                Noise(args.seed, next(numbers) << 32),
                step=args.step,
                beta=args.beta,
                stop=args.stop,
                limit=args.max_steps,
            )
            samples.append(restored.images)
            steps, finished = max(steps, restored.steps), [*finished, restored.finished]
            bar.update()
        mean = torch.stack(samples).mean(0)
        errors.append((operator.forward(mean) - m).abs().max())
        for name, column in (
            ("measured", operator.picture(m)),
            ("pseudo-inverse", operator.pinv(m)),
            ("grey", operator.grey(m)),
            ("sample", samples[0]),
            ("mean", mean),
        ):
            columns[name].append(column)
    images = {name: torch.cat(parts) for name, parts in columns.items()}
    result: Results = dict(
        measured=operator.size / x[0].numel(),
        steps=steps,
        finished=float(torch.cat(finished).double().mean()),
        largest_error=float(torch.stack(errors).max()),
        seconds=round(time.perf_counter() - start, 1),
    )
    for name, metric in (("psnr", psnr), ("ssim", ssim)):
        result[name] = {kind: float(metric(images[kind], x).mean()) for kind in images if kind != "measured"}
    return result, images


def _row(problem: str, result: Results) -> list[object]:
    cells = [
        f"{result[metric][kind]:{form}}"
        for metric, form in (("psnr", ".2f"), ("ssim", ".3f"))
        for kind in ("pseudo-inverse", "grey", "sample", "mean")
    ]
    return [problem, f"{result['measured']:.1%}", *cells, result["steps"], result["seconds"]]


def _picture(x: Tensor, tiles: dict[str, dict[str, Tensor]], samples: int) -> Figure:
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


def _operator(problem: str, shape: Sequence[int], args: argparse.Namespace) -> Operator:
    try:
        return PROBLEMS[problem](tuple(shape), args)
    except ValueError as error:
        raise CDNError(f"{problem}: {error}") from None


def _check(experiment: Experiment) -> None:
    """Refuse runs without a denoiser and options out of range before any time is spent."""
    args = experiment.args
    if not experiment.run.denoises:
        raise CDNError(f"{args.run}: expected a run that was trained to denoise, got a plain classifier")
    for name in ("step", "beta"):
        if getattr(args, name) == 0:
            raise CDNError(f"--{name}: expected a number in (0, 1], got 0")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("restoration", __doc__, limit=16, batch_size=64)
    parser.add_argument(
        "--problems",
        nargs="+",
        choices=PROBLEMS,
        default=list(PROBLEMS),
        metavar="NAME",
        help=f"of {', '.join(PROBLEMS)} (default: all)",
    )
    parser.add_argument(
        "--samples",
        metavar="N",
        type=positive_int,
        default=4,
        help="restorations per image, whose mean is taken too (default: %(default)s)",
    )
    parser.add_argument(
        "--block",
        metavar="PIXELS",
        type=positive_int,
        help="inpainting: side of the lost block (default: 3/8 of the shorter side)",
    )
    parser.add_argument(
        "--ratio",
        metavar="SHARE",
        type=fraction,
        default=0.3,
        help="missing-pixels, compressive-sensing: measured share (default: %(default)s)",
    )
    parser.add_argument(
        "--factor",
        metavar="N",
        type=positive_int,
        default=2,
        help="super-resolution: side of the squares that are averaged (default: %(default)s)",
    )
    parser.add_argument(
        "--blur",
        metavar="PIXELS",
        type=positive_float,
        default=1.5,
        help="deblurring: deviation of the Gaussian (default: %(default)s)",
    )
    parser.add_argument(
        "--step",
        metavar="H",
        type=fraction,
        default=0.1,
        help="share of the way that the first step takes (default: %(default)s)",
    )
    parser.add_argument(
        "--beta",
        metavar="B",
        type=fraction,
        default=0.1,
        help="1: no noise on the way; the smaller, the slower and the better (default: %(default)s)",
    )
    parser.add_argument(
        "--stop",
        metavar="SIGMA",
        type=positive_float,
        default=0.01,
        help="noise level to end at, in units of images in [0, 1] (default: %(default)s)",
    )
    parser.add_argument(
        "--max-steps", metavar="N", type=positive_int, default=1000, help="end there in any case (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
