"""What every experiment shares: its options, the run it opens, and the folder that its figures and pictures go to."""

import argparse
import datetime
import math
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cdn.cli.arguments import add_runtime_arguments, pick_device, positive_float, positive_int, seed_number
from cdn.data import ImageSplit
from cdn.errors import CDNError
from cdn.model.capabilities import kind
from cdn.model.finite import json_text
from cdn.pictures.style import attempt, save
from cdn.run_folder.opened import Run, by_name, open_run
from cdn.run_folder.weights import make_folder, write_atomically
from cdn_kernels import machine

REPORT = "report.json"
# What JSON can hold, by name: numbers, strings, lists and dicts of these.
Results = dict[str, Any]


def make_parser(name: str, doc: str | None, *, limit: int, batch_size: int = 256) -> argparse.ArgumentParser:
    """Return the parser of an experiment, with the options that all of them have.

    Args:
        name: of its module in :mod:`cdn.experiments`, and of the folder it writes by default.
        doc: its module docstring, which ``--help`` shows.
        limit: default number of test images.
        batch_size: default number of images per forward.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m cdn.experiments.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(experiment=name)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a training run")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help=f"where {REPORT} and the pictures go; what is there is replaced (default: RUN/{name})",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data (default: that of the training)")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=positive_int,
        default=limit,
        help="use the first N test images (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=positive_int,
        default=batch_size,
        help="images per forward (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=seed_number, default=0, help="of all that is drawn at random (default: %(default)s)"
    )
    add_runtime_arguments(parser)
    return parser


def add_against(parser: argparse.ArgumentParser) -> None:
    """Add ``--against``, for :meth:`Experiment.classifiers`."""
    parser.add_argument(
        "--against",
        metavar="RUN",
        type=Path,
        nargs="+",
        default=[],
        help="other runs on the same data, to be measured beside it",
    )


def add_grey_sigmas(parser: argparse.ArgumentParser) -> None:
    """Add ``--sigmas``, noise levels in grey levels."""
    parser.add_argument(
        "--sigmas",
        metavar="S",
        type=positive_float,
        nargs="+",
        default=[15, 25, 50, 100],
        help="noise levels, in grey levels of 255 (default: 15 25 50 100)",
    )


class Experiment:
    """One execution of an experiment: its run, its clock, and its results.

    Args:
        args: what :func:`make_parser` parsed.

    Attributes:
        run: the :class:`cdn.run_folder.opened.Run`; ``model`` and ``device`` are short for its model and where that is.

    Raises:
        CDNError: the run or its data cannot be read, or the output folder cannot be made.
    """

    out: Path

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.start = args, time.perf_counter()
        self.device = pick_device(args.device)
        self.run = open_run(args.run, self.device, args.data_dir)
        self.model = self.run.model
        self.out = args.out or args.run / args.experiment
        make_folder(self.out)

    def open(self, path: Path) -> Run:
        """Open a further run, to be measured on the test images of the first.

        Raises:
            CDNError: it cannot be read, or was trained on images of another kind.
        """
        run = open_run(path, self.device, self.args.data_dir)
        kinds = [(other.dataset.name, other.dataset.shape, other.dataset.classes) for other in (self.run, run)]
        if kinds[0] != kinds[1]:
            (name, shape, classes), (first_name, first_shape, first_classes) = kinds[1], kinds[0]
            raise CDNError(
                f"{path}: was trained on {name}, {len(classes)} classes of images {list(shape)}, but "
                f"{self.run.path} on {first_name}, {len(first_classes)} of {list(first_shape)}"
            )
        return run

    def classifiers(self) -> dict[str, Run]:
        """Return the run and those of ``--against``, by name.

        Raises:
            CDNError: one of them cannot be read, is given twice, was trained on other images, or has no classes.
        """
        runs = by_name([self.run, *map(self.open, self.args.against)])
        for run in runs.values():
            if not run.has_classes:
                raise CDNError(f"{run.path}: was trained to denoise only, it has no classes")
        return runs

    def require_density(self, *, classes: bool = False) -> None:
        """Raise CDNError unless the run was trained to model a density of images and, if asked for, their classes."""
        if not self.run.has_density or (classes and not self.run.has_classes):
            raise CDNError(
                f"{self.run.path}: expected a run that models a density{' and classes' if classes else ''}, "
                f"got {kind(self.model, self.run.objective)}"
            )

    @property
    def progress(self) -> bool:
        """Whether to draw progress bars: only where a person watches."""
        return sys.stderr.isatty()

    def test_images(self, limit: int | None = None, *, exact: bool = False) -> tuple[Tensor, Tensor]:
        """Return the first test images, float32 [N, C, H, W] in [0, 1], and their labels [N], on the device.

        Args:
            limit: how many; None for ``--limit``.
            exact: only images that exist losslessly, as PSNR needs.
        """
        return self.images(self.run.dataset.test, limit or self.args.limit, exact=exact)

    def images(self, split: ImageSplit, limit: int | None, *, exact: bool = False) -> tuple[Tensor, Tensor]:
        """Return the first images of a split, as :meth:`test_images` does."""
        return self._load(split, (split.exact.nonzero()[:, 0] if exact else torch.arange(len(split)))[:limit])

    def spread_images(self, split: ImageSplit, count: int) -> tuple[Tensor, Tensor]:
        """Return images of a split, evenly spread over it and at most count, as :meth:`test_images` does."""
        return self._load(split, torch.linspace(0, len(split) - 1, min(count, len(split))).round().long())

    def _load(self, split: ImageSplit, indices: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = split.load(indices)
        return images.to(self.device).float().div(255), labels.to(self.device)

    def save_figure(self, figure: Figure, name: str = "picture.png") -> None:
        """Write a matplotlib figure into the output folder."""
        save_figure(figure, self.out / name)

    def write(self, results: Results | list[Results]) -> None:
        """Write ``report.json``: the results, and all it takes to repeat them.

        Args:
            results: a dict, or a list of dicts, of what JSON can hold; numbers that are not finite become null.
        """
        write_report(
            self.out,
            self.args,
            results,
            self.start,
            self.device.type,
            model=self.run.config["model"],
            data=self.run.dataset.name,
        )


def save_figure(figure: Figure, path: Path) -> None:
    """Write a matplotlib figure, and say so; or say that it could not be drawn, and go on."""
    if attempt(lambda: save(figure, path), path):
        print(f"wrote {path}")


def write_report(
    folder: Path,
    args: argparse.Namespace,
    results: Results | list[Results],
    start: float,
    device: str = "cpu",
    **about: Any,
) -> None:
    """Write ``report.json`` into a folder: results, and all it takes to repeat them.

    Args:
        folder: an existing folder.
        args: parsed options, with the name of the experiment in ``experiment``.
        results: a dict, or a list of dicts, of what JSON can hold; numbers that are not finite become null.
        start: ``time.perf_counter()`` when the experiment began.
        device: the type of the device it ran on.
        about: what else the report is to say, between the options and the machine.
    """
    report = dict(
        experiment=args.experiment,
        command=shlex.join(["python", "-m", *_command()]),
        options=vars(args),
        **about,
        machine=machine.describe(device),
        date=datetime.date.today().isoformat(),
        seconds=round(time.perf_counter() - start, 1),
        results=results,
    )
    # Options may hold paths, one or many.
    write_atomically(folder / REPORT, (json_text(report, indent=2, default=str) + "\n").encode())
    print(f"wrote {folder / REPORT}")


def text_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as Markdown, which a terminal shows well too.

    Args:
        header: names of the columns.
        rows: lists of cells: strings as they are, floats with 4 significant digits, None as a dash.
    """
    cells = [[_cell(value) for value in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        "| "
        + " | ".join(
            text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths))
        )
        + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def mean_and_error(values: Tensor) -> list[float]:
    """Return [mean, standard error] of values [N], one per image; nan where there are not enough of them."""
    return [float(values.mean()), float(values.std()) / math.sqrt(max(len(values), 1))]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _command() -> list[str]:
    """Return the module and the arguments of this process, as after ``python -m``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name if spec else sys.argv[0], *sys.argv[1:]]
