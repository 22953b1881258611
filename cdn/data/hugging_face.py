"""Data sets of Hugging Face's package ``datasets``: names on the Hub, folders of parquet, arrow, tar or image files."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cdn.data.decoded import LARGEST_UNASKED, SAY_WHICH, ItemSplit
from cdn.data.shards import check_shards
from cdn.errors import DataError
from cdn.images.decoder import decode

# Names of the split that is tested on, the first that is there; a test split often comes without labels.
TESTS = ("validation", "val", "valid", "test")
# Names of columns of images and labels, where there are several; cls is what shards of WebDataset call labels.
IMAGES, LABELS = ("image", "img"), ("label", "fine_label", "labels", "target", "cls")


class ColumnSplit(ItemSplit):
    """Decode a column of image files, whose items are dicts of ``bytes`` and ``path``."""

    def _image(self, index: int, where: str, at_least: int | Callable[[int, int], int] | None) -> Image.Image:
        return decode(File(self.items[index], where), at_least=at_least).image


class File(io.BytesIO):
    """The content of an image file, in memory or on disk, which errors call by a name."""

    def __init__(self, cell: Mapping[str, Any] | None, name: str) -> None:
        if cell is None:
            raise DataError(f"{name}: there is none")
        content = cell.get("bytes")
        if content is None:
            try:
                content = Path(str(cell.get("path"))).read_bytes()
            except OSError as error:
                raise DataError(f"{name}: its file cannot be read: {error.strerror}") from None
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


def load_hugging_face(source: str, image_size: int | None = None) -> tuple[ColumnSplit, ColumnSplit, tuple[str, ...]]:
    """Return the train split, the test split and the names of the classes of a data set.

    Args:
        source: a folder, of what ``save_to_disk`` wrote or of files that ``datasets.load_dataset`` knows, or a name on
            the Hub, such as "ylecun/mnist", with a configuration after a colon if it has several, as in
            "ufldl-stanford/svhn:cropped_digits".
        image_size: side of the square images; if left out, all images have to have the size of the first.

    Images in grey have one channel, if those of both splits do; else there are three.

    Raises:
        DataError: ``datasets`` is not installed, nothing is found there, a split, images or labels are missing, or a
            file is damaged.
    """
    found = _open(source)
    tested = next((name for name in TESTS if name in found), None)
    if "train" not in found or tested is None:
        raise DataError(f"{source}: expected splits train and one of {', '.join(TESTS)}, got {', '.join(found)}")
    tables = {name: found[name] for name in ("train", tested)}
    image, label = _columns(source, tables["train"].features)
    labels = {name: _labels(f"{source} {name}", table[label][:]) for name, table in tables.items()}
    classes = _classes(tables["train"], label)
    columns = {name: _undecoded(table, image) for name, table in tables.items()}
    first = {name: decode(File(column[0], f"{source} {name}, image 0")) for name, column in columns.items()}
    channels = 1 if all(decoded.grey for decoded in first.values()) else 3
    width, height = first["train"].image.size
    if image_size is None and max(width, height) > LARGEST_UNASKED:
        raise DataError(
            f"{source}: its first image has {width}x{height} pixels: sizes above {LARGEST_UNASKED} are not taken "
            f"unasked; {SAY_WHICH}"
        )
    shape = (channels, image_size or height, image_size or width)
    train, test = (
        ColumnSplit(f"{source} {name}", columns[name], labels[name], shape, image_size is not None) for name in tables
    )
    return train, test, classes


def _open(source: str) -> Mapping[str, Any]:
    """Return the splits of a source by name."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "hf: expected Hugging Face's package datasets to be installed (pip install "
            f"'classification-denoising[hf]'), got: {error}"
        ) from error
    datasets.disable_progress_bars()
    if Path(source).is_dir():
        check_shards(Path(source))
    try:
        if (Path(source) / "dataset_dict.json").exists():
            return datasets.load_from_disk(source)
        name, _, configuration = (source, "", "") if Path(source).exists() else source.partition(":")
        return datasets.load_dataset(name, configuration or None)
    except Exception as error:  # it fails in every way there is: no network, no such name, damaged files
        cause = " ".join(str(error).split())[:200]
        raise DataError(f"{source}: datasets cannot load it: {type(error).__name__}: {cause}") from None


def _columns(source: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image" or _holds_files(features[name])]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels or [name for name in LABELS if str(getattr(features.get(name), "dtype", "")).startswith("int")]
    image = next((name for name in IMAGES if name in images), images[0] if images else None)
    label = next((name for name in LABELS if name in labels), labels[0] if labels else None)
    if image is None or label is None:
        columns = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise DataError(f"{source}: expected a column of images and one of labels, got {columns}")
    return image, label


def _labels(where: str, labels: list[int | None]) -> torch.Tensor:
    if None in labels:
        raise DataError(f"{where}: image {labels.index(None)} has no label")
    return torch.tensor(labels, dtype=torch.int64)


def _holds_files(feature: Any) -> bool:
    """Say whether a column is one of images that nobody declared as such, as in parquet files of other programs."""
    return isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}


def _undecoded(table: Any, image: str) -> Any:
    """Return the column of image files as they are."""
    import datasets

    return table.select_columns([image]).cast_column(image, datasets.Image(decode=False))[image]


def _classes(table: Any, label: str) -> tuple[str, ...]:
    """Return the names of the classes, or their numbers where they have none."""
    names = getattr(table.features[label], "names", None)
    return tuple(names) if names else tuple(map(str, range(max(table[label][:]) + 1)))
