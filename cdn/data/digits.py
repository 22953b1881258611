"""The handwritten digits that scikit-learn carries: a dataset without a download."""

import torch

from cdn.data.split import MemorySplit
from cdn.errors import DataError

TEST_SIZE = 360
SPLIT_SEED = 0


def load_digits() -> tuple[MemorySplit, MemorySplit, tuple[str, ...]]:
    """Return 1,437 train and 360 test images, uint8 [N, 1, 8, 8], and the ten class names.

    The source has 17 grey levels v in 0..16, stored here as round(255 v / 16). As 255/16 is not an integer, a
    pixel is exact to within half a uint8 step, and the 17 levels stay distinct. The split is stratified and
    always the same.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise DataError(
            f"digits: expected scikit-learn to be installed (pip install scikit-learn), got: {error}"
        ) from error
    source = datasets.load_digits()
    images = torch.from_numpy(source.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(source.target).to(torch.int64)
    train, test = model_selection.train_test_split(
        range(len(labels)), test_size=TEST_SIZE, stratify=source.target, random_state=SPLIT_SEED
    )
    classes = tuple(str(name) for name in source.target_names)
    return MemorySplit(images[train], labels[train]), MemorySplit(images[test], labels[test]), classes
