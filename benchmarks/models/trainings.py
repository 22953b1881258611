"""The trainings of the models that come with the package and of those that stand beside them, a command each."""

import shlex

from cdn.cli.training import training_parser
from cdn.training.settings import Settings

_CIFAR10 = (
    "--data cifar10 --data-dir data/cifar10 --width 48 --batch-size 128 --epochs 20 --precision bf16 --evaluations 20"
)
# Options of python -m cdn.train. Where the data lies is told by --data-dir; data/patches is what
# python -m benchmarks.models.patches makes.
TRAININGS = {
    "digits": "--out runs/digits",
    "digits-classification": "--objective classification --out runs/digits-classification",
    "digits-jem": "--objective jem --out runs/digits-jem",
    "cifar10": f"{_CIFAR10} --model gradresnet10 --out runs/cifar10",
    "cifar10-classification": f"{_CIFAR10} --model gradresnet10 --objective classification "
    "--out runs/cifar10-classification",
    "cifar10-denoiser": f"{_CIFAR10} --model denoiser10 --objective denoising --out runs/cifar10-denoiser",
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


def command(name: str) -> str:
    """Return the command of a training."""
    return shlex.join(["python", "-m", "cdn.train", *_options(name)])


def settings(name: str) -> Settings:
    """Return the settings of a training."""
    arguments = vars(training_parser().parse_args(_options(name)))
    return Settings(**{key: value for key, value in arguments.items() if key in Settings.__dataclass_fields__})


def _options(name: str) -> list[str]:
    return shlex.split((TRAININGS | COMPUTED)[name])
