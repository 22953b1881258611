"""The trainings of the models that come with the package and of those that stand beside them, a command each."""

import shlex
from typing import Any

from cdn.cli.training import training_parser
from cdn.training.settings import Settings

# More weight for denoising towards the end, and labels a little less than sure, because the last epochs fit all images.
_JOINT, _LABELS = "--final-lambda 48", "--label-smoothing 0.02"
# The rate is that of the recipe of their time.
_CIFAR10 = (
    "--data cifar10 --data-dir data/cifar10 --width 48 --batch-size 128 --learning-rate 3e-3 --epochs 20 "
    "--precision bf16 --evaluations 20"
)
# Forty classes of ImageNet, 400 images each, at 64x64 pixels; on two processes, each with half of a batch.
_IMAGENET40 = (
    "--data imagefolder --data-dir data/imagenet40 --image-size 64 --width 48 --batch-size 64 --epochs 8 "
    "--precision bf16 --evaluations 8"
)
# Options of python -m cdn.train. Where the data lies is told by --data-dir; data/patches is what
# python -m benchmarks.models.patches makes.
TRAININGS = {
    "digits": "--out runs/digits",
    "digits-classification": "--objective classification --out runs/digits-classification",
    "digits-jem": "--objective jem --out runs/digits-jem",
    "cifar10": f"{_CIFAR10} {_LABELS} --model gradresnet10 {_JOINT} --out runs/cifar10",
    "cifar10-classification": f"{_CIFAR10} {_LABELS} --model gradresnet10 --objective classification "
    "--out runs/cifar10-classification",
    "cifar10-denoiser": f"{_CIFAR10} --model denoiser10 --objective denoising --out runs/cifar10-denoiser",
    "imagenet40": f"{_IMAGENET40} --model gradresnet10 {_JOINT} --out runs/imagenet40",
    "imagenet40-classification": f"{_IMAGENET40} --model gradresnet10 --objective classification "
    "--out runs/imagenet40-classification",
    "imagenet40-denoiser": f"{_IMAGENET40} --model denoiser10 --objective denoising --out runs/imagenet40-denoiser",
    "imagenet40-finetuned": f"{_IMAGENET40} --model gradresnet10 {_JOINT} --init cifar10 "
    "--out runs/imagenet40-finetuned",
    "photographs": "--data imagefolder --data-dir data/patches --image-size 48 --objective denoising "
    "--crop-padding 0 --model gradresnet8 --width 48 --batch-size 16 --sigma-low 0.02 --sigma-high 0.5 --steps 7500 "
    "--evaluations 20 --workers 0 --out runs/photographs",
}
# Trainings that were not run, for the computation of what they would take: of how many images and classes.
COMPUTED = {
    "imagenet64": "--recipe imagenet64 --data imagefolder --data-dir data/imagenet --out runs/imagenet64",
    "imagenet": "--recipe imagenet --data imagefolder --data-dir data/imagenet --out runs/imagenet",
}
IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000
# Of every model that comes with the package: what stands beside it.
TWINS: dict[str, tuple[str, ...]] = {
    "digits": ("digits-classification", "digits-jem"),
    "cifar10": ("cifar10-classification", "cifar10-denoiser"),
    "photographs": (),
}
# What is trained to be compared, and is not shipped: the first, and what stands beside it.
COMPARED: dict[str, tuple[str, ...]] = {
    "imagenet40": ("imagenet40-classification", "imagenet40-denoiser", "imagenet40-finetuned")
}
# Settings that say where and how a training was computed, not what was learned.
_FREE = ("data_dir", "device", "fused", "impl", "workers")


def command(name: str) -> str:
    """Return the command of a training."""
    return shlex.join(["python", "-m", "cdn.train", *_options(name)])


def settings(name: str) -> Settings:
    """Return the settings of a training."""
    arguments = vars(training_parser().parse_args(_options(name)))
    return Settings(**{key: value for key, value in arguments.items() if key in Settings.__dataclass_fields__})


def departures(name: str, recorded: dict[str, Any]) -> list[str]:
    """Return the settings of a recorded run, by name, that are not those of a training."""
    expected = settings(name).as_dict()
    return [key for key, value in recorded.items() if key not in _FREE and expected.get(key) != value]


def _options(name: str) -> list[str]:
    return shlex.split((TRAININGS | COMPUTED)[name])
