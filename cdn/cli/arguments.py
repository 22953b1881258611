"""Options of commands: their types, each with one sentence for what it does not take, and devices."""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch

from cdn.errors import CDNError
from cdn.images.tiles import SMALLEST
from cdn.model.inputs import sigma_text
from cdn.model.modes import PRECISIONS
from cdn.processes import first_to_fail, local_rank
from cdn.run_folder.shipped import is_shipped_name, locate
from cdn_kernels.noise import HIGHEST_LEVEL, SEEDS

Number = TypeVar("Number", int, float)


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    return _number(text, int, lambda v: v >= 1, "a whole number of at least 1")


def whole_number(text: str) -> int:
    """Parse an integer of at least 0."""
    return _number(text, int, lambda v: v >= 0, "a whole number of at least 0")


def seed_number(text: str) -> int:
    """Parse what :class:`cdn.Noise` takes as a seed."""
    return _number(text, int, lambda v: 0 <= v < SEEDS, "a whole number of at least 0 and below 2^64")


def noise_level(text: str) -> float:
    """Parse a noise level in the units of images in [0, 1], as 0.1 or 25/255: the one type of all commands."""
    level = _number(text, _ratio, lambda v: 0 < v < float("inf"), "a number above 0, such as 0.1 or 25/255")
    if level > HIGHEST_LEVEL:
        raise argparse.ArgumentTypeError(f"expected the noise level of images in [0, 1], got {text!r}; {grey(level)}")
    return level


def grey(level: float) -> str:
    """Say how a noise level that looks like grey levels is written in the units of images in [0, 1]."""
    return f"{level:g} grey levels are {level:g}/255"


def _ratio(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    return _number(text, float, lambda v: 0 < v < float("inf"), "a number above 0")


def nonnegative_float(text: str) -> float:
    """Parse a finite number of at least 0."""
    return _number(text, float, lambda v: 0 <= v < float("inf"), "a number of at least 0")


def fraction(text: str) -> float:
    """Parse a number in [0, 1]."""
    return _number(text, float, lambda v: 0 <= v <= 1, "a number in [0, 1]")


def probability(text: str) -> float:
    """Parse a number strictly between 0 and 1."""
    return _number(text, float, lambda v: 0 < v < 1, "a number between 0 and 1")


def _number(text: str, kind: Callable[[str], Number], valid: Callable[[Number], bool], expected: str) -> Number:
    try:
        value: Number | None = kind(text)
    except (ValueError, ZeroDivisionError):
        value = None
    if value is None or not valid(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def tile_side(text: str) -> int:
    """Parse the side of a tile."""
    return _number(text, int, lambda v: v >= SMALLEST, f"a whole number of at least {SMALLEST}")


def named_folder(text: str) -> tuple[str, str]:
    """Parse NAME=FOLDER, both not empty."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got {text!r}")
    return name, folder


def run_path(text: str) -> Path:
    """Parse a run: a folder or a weights file, or the name of a model that comes with the package."""
    path = Path(text)
    if is_shipped_name(text) and path.exists():
        print(f"note: {text} is taken to be the folder here, not the model of that name", file=sys.stderr)
    return locate(text)


def pick_device(name: str) -> torch.device:
    """Return the torch device of "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".

    Of processes that torchrun started on one machine, each gets a GPU of its own.

    Raises:
        CDNError: no such device here, or one GPU for several processes.
    """
    rank = local_rank()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if rank is not None and name.startswith("cuda"):
        if name != "cuda":
            raise CDNError(f"--device {name} is one GPU for several processes: give cuda, and each takes its own")
        name = f"cuda:{rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CDNError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


class Option(NamedTuple):
    """An option of a command.

    Attributes:
        flag: such as "--steps".
        kind: the function that parses a value, the collection of values to choose from, or bool for a switch.
        default: its value where it is not given; None for none.
        text: what it is, for ``--help``, which the default is added to.
        many: whether it takes one value or more.
        required: whether it has to be given.
    """

    flag: str
    kind: Any
    default: Any
    text: str
    many: bool = False
    required: bool = False

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Add the option to a parser, or to a group of one."""
        if self.kind is bool:
            parser.add_argument(self.flag, action="store_true", help=self.text)
            return
        shown = "" if self.default is None else f" (default: {self._text_of(self.default)})"
        how: dict[str, Any] = (
            dict(type=self.kind, metavar=METAVARS.get(self.kind, "TEXT")) if callable(self.kind) else {}
        )
        if not how:
            how = dict(choices=self.kind, metavar="NAME" if self.many else None)
        if self.many:
            how["nargs"] = "+"
        parser.add_argument(
            self.flag, default=self.default, required=self.required, help=(self.text + shown).replace("%", "%%"), **how
        )

    def _text_of(self, value: Any) -> str:
        one = sigma_text if self.kind is noise_level else str
        return " ".join(map(one, value)) if self.many else one(value)


# What stands for a value in ``--help``, by its type.
METAVARS: dict[Any, str] = {
    positive_int: "N",
    whole_number: "N",
    seed_number: "N",
    tile_side: "N",
    noise_level: "SIGMA",
    fraction: "SHARE",
    probability: "P",
    named_folder: "NAME=FOLDER",
    positive_float: "X",
    nonnegative_float: "X",
    Path: "PATH",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors one of several processes says."""

    def error(self, message: str) -> NoReturn:
        if first_to_fail():
            super().error(message)
        self.exit(2)


def make_parser(
    prog: str, text: str | None, options: Iterable[Option] = (), groups: Mapping[str, Iterable[Option]] = {}, **how: Any
) -> argparse.ArgumentParser:
    """Return the parser of a command.

    Args:
        prog: the module that ``python -m`` runs.
        text: what the command does, shown as it is.
        options: its options.
        groups: further ones under titles of their own.
        how: for ``argparse.ArgumentParser``.
    """
    parser = _Parser(
        prog=f"python -m {prog}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter, **how
    )
    for option in options:
        option.add_to(parser)
    for title, members in groups.items():
        group = parser.add_argument_group(title)
        for option in members:
            option.add_to(group)
    return parser


# What the argument RUN is, in commands that only need its weights, and in those that need its configuration too.
RUN = "folder of a training run, or its model.safetensors, or the name of a model that comes with the package"
RUN_FOLDER = "folder of a training run, or the name of a model that comes with the package"
# The options of all commands that run a model.
DEVICE = Option("--device", str, "auto", "auto, cpu, cuda or cuda:N")
PRECISION = Option(
    "--precision", PRECISIONS, "float32", "bf16: convolutions in bfloat16, everything delicate in float32"
)
DATA_DIR = Option("--data-dir", str, None, "folder of the data (default: that of the training)")
