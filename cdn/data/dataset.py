"""A dataset by name: a train split, a test split and the names of the classes."""

from dataclasses import dataclass
from pathlib import Path

from cdn.data.cifar10 import load_cifar10
from cdn.data.decoded import check_size
from cdn.data.digits import load_digits
from cdn.data.hugging_face import load_hugging_face
from cdn.data.imagefolder import load_imagefolder
from cdn.data.split import ImageSplit, MemorySplit
from cdn.errors import DataError

__all__ = ["DATASETS", "Dataset", "ImageSplit", "MemorySplit", "load_dataset"]

DATASETS = ("digits", "cifar10", "imagefolder", "hf")
OWN = "own"  # of images that are given in Python (own.py)
_RESIZED = ("imagefolder", "hf")


@dataclass(frozen=True)
class Dataset:
    """Pair a train and a test split of the same image shape and classes.

    Raises:
        DataError: splits of different shapes, or a label without a class.
    """

    name: str
    train: ImageSplit
    test: ImageSplit
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for split, images in (("train", self.train), ("test", self.test)):
            if images.labels.max() >= self.num_classes:
                raise DataError(
                    f"{self.name} {split} labels: expected 0..{self.num_classes - 1}, got {images.labels.max()}"
                )
        if self.train.shape != self.test.shape:
            raise DataError(
                f"{self.name}: expected train and test images of one shape, "
                f"got {self.train.shape} and {self.test.shape}"
            )

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.train.shape


def load_dataset(
    name: str, data_dir: str | Path | None = None, *, download: bool = False, image_size: int | None = None
) -> Dataset:
    """Load one of `DATASETS`.

    Args:
        name: "digits" (bundled with scikit-learn), "cifar10", "imagefolder" or "hf" (Hugging Face's ``datasets``).
        data_dir: the folder that holds the data, of "hf" also a name on the Hub; "digits" needs none and ignores it.
        download: fetch CIFAR-10 into `data_dir` if it is not there yet.
        image_size: side in pixels of the squares that "imagefolder" and "hf" yield; the others have a fixed size.

    Raises:
        DataError: an unknown name, an option the dataset does not take, or data that cannot be read.
    """
    if name == OWN:
        raise DataError(
            "own: its images were given in Python, and no command can read them: give them again, to "
            "cdn.training.loop.train(..., dataset=...) or cdn.evaluation.evaluate"
        )
    if name not in DATASETS:
        raise DataError(f"dataset: expected one of {', '.join(DATASETS)}, got {name!r}")
    if download and name != "cifar10":
        raise DataError(f"download: only cifar10 can be fetched, got dataset {name!r}")
    if image_size is not None and name not in _RESIZED:
        raise DataError(f"image_size: only {' and '.join(_RESIZED)} take one, got {image_size} for {name}")
    if name == "digits":
        return Dataset(name, *load_digits())
    if data_dir is None:
        raise DataError(f"data_dir: {name} needs the folder that holds its data: give --data-dir DIR")
    if name == "cifar10":
        return Dataset(name, *load_cifar10(Path(data_dir), download))
    check_size(image_size)
    if name == "hf":
        return Dataset(name, *load_hugging_face(str(data_dir), image_size))
    return Dataset(name, *load_imagefolder(Path(data_dir), image_size))
