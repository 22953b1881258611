"""Images and labels: where they come from, in which order, and with which random translations."""

from cdn.data.augment import augment
from cdn.data.dataset import DATASETS, Dataset, ImageSplit, load_dataset
from cdn.data.sampler import batch_indices

__all__ = ["DATASETS", "Dataset", "ImageSplit", "augment", "batch_indices", "load_dataset"]
