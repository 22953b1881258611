"""Models that come with the package, known by name: run folders whose weights are rounded to 16 bits.

`python -m benchmarks.models.ship` makes them of trained runs, with a card that says what they were trained on, how,
what they were measured to do, and what they cannot.
"""

import hashlib
from pathlib import Path

from cdn.errors import CheckpointError

FOLDER = Path(__file__).parents[1] / "shipped"
CARD, CARD_TEXT = "card.json", "card.md"
# SHA-256 of the weights of each.
SHA256 = {
    "digits": "809ea5740b89e5c8d75be447eaeace873d8b3280c1774b4931df7b9352b81eb9",
    "cifar10": "2986aac0029316cd024a1ade19eb478528dd609fcc01224fd484e5a993740ebe",
    "photographs": "20b46c5effffe64aeeecee841476ba77c2dacd2e09a5e2ffa27000be8f89fb5b",
}


def locate(run: str | Path) -> Path:
    """Return the path of a run: of a folder or file, or of a model of the package if nothing here has that name."""
    path = Path(run)
    return FOLDER / path.name if is_shipped_name(run) and not path.exists() else path


def is_shipped_name(run: str | Path) -> bool:
    """Say whether a run is named as a model of the package is, whatever else has that name."""
    return str(run) in SHA256


def is_shipped(run: str | Path) -> bool:
    """Say whether a run folder, or a file in it, is one of the package."""
    return FOLDER.resolve() in Path(run).resolve().parents


def results_folder(run: Path) -> Path:
    """Return where commands write what they find of a run: its folder, or ``results/NAME`` of a model of the package.

    Args:
        run: the run folder.
    """
    return Path("results") / run.name if is_shipped(run) else run


def name_of(run: Path) -> str:
    """Return a run as people name it: a model of the package by its name, any other by its path."""
    return run.name if is_shipped(run) else str(run)


def require_unchanged(weights: Path) -> None:
    """Raise CheckpointError if a file is the weights of a model of the package, and not what was shipped."""
    if not is_shipped(weights):
        return
    name = weights.parent.name
    if hashlib.sha256(weights.read_bytes()).hexdigest() != SHA256.get(name):
        raise CheckpointError(f"{weights} is not what the package shipped as {name!r}: reinstall the package")
