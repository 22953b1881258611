"""Images and labels: where they come from, in which order, and with which random translations."""

from cdn.data.augment import Augmentation
from cdn.data.batches import Batches
from cdn.data.contents import Fingerprint, differences, fingerprint
from cdn.data.dataset import DATASETS, Dataset, ImageSplit, load_dataset
from cdn.data.own import own_dataset
from cdn.data.sampler import balanced_indices, batch_indices, steps_per_epoch
from cdn.data.split import Subset
from cdn.data.statistics import channel_mean

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batches",
    "Dataset",
    "Fingerprint",
    "ImageSplit",
    "Subset",
    "balanced_indices",
    "batch_indices",
    "channel_mean",
    "differences",
    "fingerprint",
    "load_dataset",
    "own_dataset",
    "steps_per_epoch",
]
