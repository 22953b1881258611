"""The content of a folder: images, folders, and other files, which are skipped and counted."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cdn.errors import DataError
from cdn.images.decoder import SUFFIXES

MOST_KINDS = 12  # of which a sentence speaks


@dataclass
class Listing:
    """What :func:`list_folder` found.

    Attributes:
        images: paths of the image files, sorted by name.
        folders: paths of the folders, sorted by name.
        strays: how many entries of each kind are neither.
    """

    images: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    strays: Counter[str] = field(default_factory=Counter)


def list_folder(folder: Path) -> Listing:
    """List a folder. Images are files with a suffix of an image that are not hidden.

    Raises:
        DataError: a folder that cannot be read, or an image that is no file, such as a link to nowhere.
    """
    listing = Listing()
    try:
        # scandir knows files from folders without a system call for each of what may be a million images.
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                _, suffix = os.path.splitext(entry.name)
                if entry.name.startswith("."):  # such as a file manager leaves behind
                    listing.strays["hidden"] += 1
                elif entry.is_dir():
                    listing.folders.append(Path(entry))
                elif suffix.lower() not in SUFFIXES:
                    listing.strays[suffix.lower() or "without a suffix"] += 1
                elif entry.is_file():
                    listing.images.append(Path(entry))
                else:
                    raise DataError(f"{entry.path}: expected an image file, found no file")
    except OSError as error:
        raise DataError(f"{folder}: expected a readable folder, got: {error}") from error
    return listing


def holds_images(folder: Path) -> bool:
    """Tell whether there is an image in a folder, at any depth."""
    listing = list_folder(folder)
    return bool(listing.images) or any(map(holds_images, listing.folders))


def say_skipped(folder: Path, strays: Counter[str], folders: Iterable[Path] = ()) -> None:
    """Warn, in one line, of what was skipped in a folder: files by their kind, and folders by their names."""
    kinds = [f"{count} {kind}" for kind, count in sorted(strays.items(), key=lambda item: (-item[1], item[0]))]
    names = [f"the folder {path}" for path in folders]
    total = strays.total() + len(names)
    if total == 0:
        return
    shown = [*kinds[:MOST_KINDS], *names[:MOST_KINDS]]
    more = " and more" if len(shown) < len(kinds) + len(names) else ""
    entries = "1 entry that is no image" if total == 1 else f"{total} entries that are no images"
    warnings.warn(f"{folder}: skipped {entries}: {', '.join(shown)}{more}", stacklevel=2)
