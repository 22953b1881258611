"""The frame of all experiments: each states what it needs of a run and measures; the frame does the rest.

An experiment is a module of this folder: an :class:`Experiment` with its options and its needs, and a function from the
opened :class:`Session` to :class:`Findings`, which are printed, drawn and written to ``report.json``.
"""

import argparse
import datetime
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from cdn.cli.arguments import (
    DATA_DIR,
    DEVICE,
    PRECISION,
    RUN_FOLDER,
    Option,
    make_parser,
    pick_device,
    positive_int,
    run_path,
    seed_number,
)
from cdn.data import ImageSplit
from cdn.errors import CDNError
from cdn.experiments.options import OPTIONS
from cdn.files import Results, json_text, make_folder, write_atomically
from cdn.model.capabilities import kind
from cdn.model.modes import evaluating
from cdn.pictures.style import attempt, save
from cdn.processes import ALONE, Processes, joined
from cdn.run_folder.opened import Run, by_name, open_run
from cdn.run_folder.shipped import name_of, results_folder
from cdn_kernels import machine

REPORT = "report.json"


class Need(NamedTuple):
    """What an experiment needs of a run: in words, and whether a run has it."""

    words: str
    met: Callable[[Run], bool]


DENSITY = Need("models a density", lambda run: run.has_density)
CLASSES = Need("classifies", lambda run: run.has_classes)
DENOISER = Need("denoises", lambda run: run.denoises)
DENSITY_OR_CLASSES = Need("models a density or classes", lambda run: run.has_density or run.has_classes)


class Findings(NamedTuple):
    """What an experiment found.

    Attributes:
        results: what ``report.json`` is to hold.
        text: what is printed, and written beside the results: sentences and tables, with an empty line between tables.
        figures: pictures by the names of their files; a function that draws one is called once the report is safe.
    """

    results: Results | list[Results]
    text: Sequence[str]
    figures: Mapping[str, Callable[[], Figure]] = {}


@dataclass(frozen=True)
class Experiment:
    """An experiment on a trained run; called, it is its command.

    Args:
        name: of its module, and of the folder that it writes by default.
        text: the docstring of its module, which ``--help`` shows.
        measure: does the work.
        needs: what the run must have.
        options: its own options by the titles of groups, "" for none; None for those of OPTIONS by its name.
        limit, batch_size: default numbers of test images, and of images per forward.
        against: whether other runs can be measured beside it, and all need classes (:meth:`Session.classifiers`).
        module: what ``python -m`` runs, if it is not in this folder.
    """

    name: str
    text: str | None
    measure: Callable[["Session"], Findings]
    needs: Sequence[Need] = ()
    options: Mapping[str, Sequence[Option]] | None = None
    limit: int = 100
    batch_size: int = 256
    against: bool = False
    module: str | None = None

    def __call__(self, argv: Sequence[str] | None = None) -> None:
        """Run the command: of several processes all measure, and the first prints, draws and writes."""
        args = self.parser().parse_args(argv)
        with joined(pick_device(args.device)) as processes:
            session = Session(self, args, processes)
            found = self.measure(session)
        if processes.first:
            about = dict(model=session.run.config.model, data=session.run.source["name"])
            tell(found, session.out, args, session.start, session.device.type, **about)

    def parser(self) -> argparse.ArgumentParser:
        """Return the parser of the command."""
        common = (
            DATA_DIR,
            Option("--limit", positive_int, self.limit, "use the first N test images"),
            Option("--batch-size", positive_int, self.batch_size, "images per forward"),
            Option("--seed", seed_number, 0, "seed of all random numbers"),
            DEVICE,
            PRECISION,
        )
        module = self.module or f"cdn.experiments.{self.name}"
        groups = dict(OPTIONS[self.name] if self.options is None else self.options)
        parser = make_parser(module, self.text, (*common, *groups.pop("", ())), groups)
        parser.set_defaults(experiment=self.name)
        parser.add_argument("run", metavar="RUN", type=run_path, help=RUN_FOLDER)
        add_out(parser, f"RUN/{self.name}", None)
        if self.against:
            text = "other runs on the same data, to be measured beside it"
            parser.add_argument("--against", metavar="RUN", type=run_path, nargs="+", default=[], help=text)
        return parser


class Session:
    """One execution of an experiment: its options, its run, its images, its clock.

    Args:
        experiment: what is executed.
        args: its parsed options.
        processes: those that execute it together, of which the first alone has a folder to write into.

    Attributes:
        name: of the run, as people write it.
        run: the :class:`cdn.run_folder.opened.Run`; ``model`` and ``device`` are short for its model and where it is.
        out: the folder for the report and the pictures.
        progress: whether to draw progress bars: only where a person watches.

    Raises:
        CDNError: the run or its data cannot be read or lacks what is needed, or the folder cannot be made.
    """

    def __init__(self, experiment: Experiment, args: argparse.Namespace, processes: Processes = ALONE) -> None:
        self.args, self.start, self.processes = args, time.perf_counter(), processes
        self.progress = processes.first and sys.stderr.isatty()
        self.device = pick_device(args.device)
        self.run = open_run(args.run, self.device, args.data_dir)
        self.name = name_of(args.run)
        self.model = self.run.model
        require(self.run, *experiment.needs)
        self.out: Path = args.out or results_folder(args.run) / args.experiment
        if processes.first:
            make_folder(self.out)

    def open(self, path: Path, *needs: Need) -> Run:
        """Open a further run, to be measured on the test images of the first.

        Raises:
            CDNError: it cannot be read, lacks what is needed, or was trained on images of another kind.
        """
        run = open_run(path, self.device, self.args.data_dir)
        own, its = self.run.dataset, run.dataset
        if (own.name, own.shape, own.classes) != (its.name, its.shape, its.classes):
            raise CDNError(
                f"{path}: was trained on {its.name}, {len(its.classes)} classes of images {list(its.shape)}, but "
                f"{self.run.path} on {own.name}, {len(own.classes)} of {list(own.shape)}"
            )
        require(run, *needs)
        return run

    def classifiers(self) -> dict[str, Run]:
        """Return the run and those of ``--against``, by name.

        Raises:
            CDNError: one of them cannot be read, is given twice, was trained on other images, or has no classes.
        """
        runs = by_name([self.run, *map(self.open, self.args.against)])
        for run in runs.values():
            require(run, CLASSES)
        return runs

    def bar(self, things: Any = None, **how: Any) -> tqdm:
        """Return a progress bar over things, or one of ``total`` steps."""
        return tqdm(things, leave=False, disable=not self.progress, **how)

    @contextmanager
    def evaluating(self, *others: torch.nn.Module) -> Iterator[None]:
        """Put the model, and others, into evaluation mode, at the precision of the options."""
        with ExitStack() as stack:
            for model in (self.model, *others):
                stack.enter_context(evaluating(model, self.args.precision))
            yield

    def test_images(self, limit: int | None = None, *, exact: bool = False) -> tuple[Tensor, Tensor]:
        """Return the first test images, float32 [N, C, H, W] in [0, 1], and their labels [N], on the device.

        Args:
            limit: how many; None for ``--limit``.
            exact: only images that exist losslessly, as PSNR needs.

        Raises:
            CDNError: none of them is exact.
        """
        images, labels = self.images(self.run.dataset.test, limit or self.args.limit, exact=exact)
        if not len(images):
            raise CDNError(
                f"{self.run.path}: PSNR needs images that exist losslessly, but the test images of "
                f"{self.run.dataset.name} are all marked as inexact"
            )
        return images, labels

    def images(self, split: ImageSplit, limit: int | None, *, exact: bool = False) -> tuple[Tensor, Tensor]:
        """Return the first images of a split, as :meth:`test_images` does."""
        return self.load(split, split.first(limit, exact=exact))

    def load(self, split: ImageSplit, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images of some indices, as :meth:`test_images` does."""
        images, labels = split.images(indices, self.device)
        return images, labels.to(self.device)


def require(run: Run, *needs: Need) -> None:
    """Raise CDNError unless a run has all that is needed of it."""
    if not all(need.met(run) for need in needs):
        words = " and ".join(need.words for need in needs)
        raise CDNError(f"{run.path}: expected a run that {words}, got {kind(run.model, run.config.objective)}")


def add_out(parser: argparse.ArgumentParser, shown: str, default: Path | None) -> None:
    """Add ``--out``, the folder of the report and the pictures."""
    text = f"where {REPORT} and the pictures go; what is there is replaced (default: {shown})"
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=default, help=text)


def save_figure(draw: Callable[[], Figure], path: Path) -> None:
    """Draw a figure and write it, and say so; or say that it could not be drawn, and go on."""
    if attempt(lambda: save(draw(), path), path):
        print(f"wrote {path}")


def tell(
    found: Findings, folder: Path, args: argparse.Namespace, start: float, device: str = "cpu", **about: Any
) -> None:
    """Print what was found, draw its figures, and write ``report.json``: all of it, and what it takes to repeat it.

    Args:
        found: of the experiment.
        folder: an existing folder.
        args: parsed options, with the name of the experiment in ``experiment``.
        start: ``time.perf_counter()`` when the experiment began.
        device: the type of the device it ran on.
        about: what else the report is to say, between the options and the machine.
    """
    for number, text in enumerate(found.text):
        print("\n" + text if number and text.startswith("|") and found.text[number - 1].startswith("|") else text)
    for name, draw in found.figures.items():
        save_figure(draw, folder / name)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    report = dict(
        experiment=args.experiment,
        command=shlex.join(["python", "-m", spec.name if spec else sys.argv[0], *sys.argv[1:]]),
        options=vars(args),
        **about,
        machine=machine.describe(device),
        date=datetime.date.today().isoformat(),
        seconds=round(time.perf_counter() - start, 1),
        text=list(found.text),
        results=found.results,
    )
    # Options may hold paths, one or many.
    write_atomically(folder / REPORT, (json_text(report, indent=2, default=str) + "\n").encode())
    print(f"wrote {folder / REPORT}")
