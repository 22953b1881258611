"""The settings of a training run, with the recipe of each data set as defaults."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypedDict, get_type_hints

import torch
from torch import Tensor

from cdn.errors import CDNError
from cdn.model import DirectDenoiser, GradResNet, Network, ResNet
from cdn.model.gradresnet import Mean
from cdn.run_folder.forms import misfit
from cdn.training.recipes import BY_DATA, FIXED_SIZE, NAMED, RECIPES, recipe_for
from cdn_kernels import NoiseLevels
from cdn_kernels.backends.dispatch import IMPLEMENTATIONS, fused_backends

BLOCKS: dict[str, tuple[int, ...]] = {
    "gradresnet8": (1, 1, 1),
    "gradresnet10": (1, 1, 1, 1),
    "gradresnet18": (2, 2, 2, 2),
    "gradresnet34": (3, 4, 6, 3),
    "gradresnet-small": (2, 2),
    "resnet18": (2, 2, 2, 2),
    "resnet-small": (2, 2),
    "denoiser10": (1, 1, 1, 1),
    "denoiser18": (2, 2, 2, 2),
    "denoiser-small": (2, 2),
}
OBJECTIVES = ("joint", "classification", "denoising", "jem")
KERNELS = tuple(name for name in IMPLEMENTATIONS if name != "reference")

# What may change when a run is resumed, since it changes nothing but what is seen of the run, or how its sums are
# rounded. The data may have moved, and has to be the same.
FREE = ("data_dir", "device", "log_every", "evaluations", "checkpoint_seconds", "accumulate", "recompute", "workers")

# What runs of older versions, which did not write it down, did.
UNWRITTEN: dict[str, Any] = dict(clean="independent", fused=False)
# Default of the settings that have none of their own: they are filled in when the others are known.
_LATER: Any = None


class Weights(TypedDict):
    """Arguments of :func:`cdn.joint_loss` that weigh its terms."""

    classification_weight: float
    denoising_weight: float | Tensor
    label_smoothing: float


@dataclass(frozen=True)
class Settings:
    """The settings of a run, as written to ``config.json``; None stands for the recipe, by name or of the data set.

    The fields are the options of ``python -m cdn.train``, which documents them.

    Raises:
        CDNError: options that contradict each other.
    """

    data: str = "digits"
    recipe: str | None = None
    data_dir: str | None = None
    image_size: int | None = None
    train_images: int | None = None
    init: str | None = None
    model: str = _LATER
    width: int = _LATER
    stem: str = _LATER
    head: str = _LATER
    norm: str = "scale-preserving"
    homogeneous: bool = False
    mean: float | None = None
    objective: str = _LATER
    denoising_weight: float = _LATER
    final_denoising_weight: float | None = None
    label_smoothing: float = 0.0
    jem_start: str = "gaussian"
    jem_steps: int = 20
    jem_step_size: float = 1.0
    jem_noise: float = 0.01
    jem_input_noise: float = 0.03
    jem_buffer: int = 10_000
    jem_restart: float = 0.05
    sigma_law: str = "log-uniform"
    sigma_low: float = 0.01
    sigma_high: float = 1.0
    clean_share: float = _LATER
    clean: str = "stratified"
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = _LATER
    accumulate: int = 1
    recompute: bool = False
    workers: int | None = None
    crop_padding: int = _LATER
    crop_size: int | None = None
    crop_area: float | None = None
    flip: bool = _LATER
    optimizer: str = _LATER
    learning_rate: float = _LATER
    warmup: int = _LATER
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = _LATER
    precision: str = "float32"
    device: str = "auto"
    seed: int = 0
    fused: bool | None = None
    impl: str = "auto"
    log_every: int = 20
    evaluations: int = 10
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.data not in BY_DATA:
            raise CDNError(f"data: expected one of {', '.join(BY_DATA)}, got {self.data!r}")
        if self.recipe is not None and self.recipe not in NAMED:
            raise CDNError(f"recipe: expected one of {', '.join(NAMED)}, got {self.recipe!r}")
        if self.recipe and self.data in FIXED_SIZE:
            raise CDNError(f"--recipe {self.recipe} resizes images, and those of {self.data} have a size already")
        # So that a run can be resumed from anywhere; what does not exist may be a name on the Hub.
        if self.data_dir is not None and not (self.data == "hf" and not os.path.exists(self.data_dir)):
            object.__setattr__(self, "data_dir", os.path.abspath(self.data_dir))
        if self.init is not None and os.path.exists(self.init):  # what does not exist is a name of a model
            object.__setattr__(self, "init", os.path.abspath(self.init))
        family = self._fill_in()
        if self.impl != "auto" and self.fused is None:
            object.__setattr__(self, "fused", True)
        if self.impl != "auto" and not self.fused:
            raise CDNError(
                f"--impl {self.impl} chooses among the fused kernels, which --no-fused does without: give one"
            )
        if self.steps is not None and self.epochs is not None:
            raise CDNError("give epochs or steps, not both")
        if self.objective == "jem" and self.head != "linear":
            # The gradient of their energies grows with the number of values of an image: on the digits log-energy threw
            # chains to 4.5 in ten Langevin steps with fresh weights, and no number was infinite for health to see.
            raise CDNError(
                "a joint energy model needs --head linear: the gradients of the others throw the chains of "
                f"its sampler far out of the range of images, got {self.head!r}"
            )
        self._check_memory_savers(family)
        if self.crop_area is not None and not 0 < self.crop_area <= 1:
            raise CDNError(f"--crop-area: expected a share of the image above 0 and at most 1, got {self.crop_area}")
        try:
            _ = self.levels
        except ValueError as error:
            raise CDNError(str(error)) from None

    def _fill_in(self) -> str:
        """Let the recipe and the objective fill in what was left open, and return the family of the model."""
        model = self.model or RECIPES[self.recipe or self.data]["model"]
        if model not in BLOCKS:
            raise CDNError(f"model: expected one of {', '.join(BLOCKS)}, got {model!r}")
        family = model.partition("-")[0].rstrip("0123456789")
        needed = {"resnet": "classification", "denoiser": "denoising"}.get(family)
        objective = self.objective or needed or "joint"
        if needed and objective != needed:
            raise CDNError(f"a {model} can only be trained with --objective {needed}, got {objective!r}")
        for name, value in dict(recipe_for(self.data, self.recipe, objective), objective=objective).items():
            if getattr(self, name) is None and not (name == "epochs" and self.steps is not None):
                object.__setattr__(self, name, value)
        return family

    def _check_memory_savers(self, family: str) -> None:
        if self.recompute and family == "resnet":
            raise CDNError(
                f"--recompute: a {self.model} counts the statistics of every batch (BatchNorm), which would be counted "
                "again: leave it out"
            )
        if not 1 <= self.accumulate <= self.batch_size:
            raise CDNError(f"--accumulate: expected 1..{self.batch_size} (the images of a step), got {self.accumulate}")
        if self.accumulate > 1 and family == "resnet":
            raise CDNError(
                f"--accumulate {self.accumulate}: a {self.model} takes statistics over the whole batch (BatchNorm), "
                "which its parts do not have: give a smaller --batch-size, or more processes"
            )
        if self.accumulate > 1 and self.objective == "jem":
            raise CDNError(f"--accumulate {self.accumulate}: a joint energy model takes its steps whole")

    @property
    def levels(self) -> NoiseLevels:
        """The distribution of noise levels."""
        return NoiseLevels(self.sigma_law, self.sigma_low, self.sigma_high, self.clean_share, self.clean)

    @property
    def moves_lambda(self) -> bool:
        """Whether lambda changes over the run, so that no step knows it to be 0."""
        return self.final_denoising_weight is not None and self.objective != "classification"

    @property
    def kernels(self) -> str:
        """Whose kernels all operations of the run take, the one choice that ``fused`` and ``impl`` stand for."""
        return self.impl if self.fused else "reference"

    def decided(self, device: torch.device) -> "Settings":
        """Return the settings with the kernels decided: fused ones where they can run, if that was left open.

        What was decided is recorded, and holds when a run is resumed.
        """
        return self if self.fused is not None else replace(self, fused=self.why_not_fused(device) is None)

    def why_not_fused(self, device: torch.device) -> str | None:
        """Return None if the fused kernels can run on a device, or the reason why not."""
        try:
            replace(self, fused=True).backends(device)
        except CDNError as error:
            return str(error).removeprefix("--fused: ")
        return None

    def backends(self, device: torch.device) -> dict[str, str]:
        """Return the backend of each operation on a device, where the run is fused; else nothing.

        Raises:
            CDNError: the kernels that were asked for cannot run there.
        """
        if not self.fused:
            return {}
        try:
            return fused_backends(device, self.impl, torch.bfloat16 if self.precision == "bf16" else torch.float32)
        except RuntimeError as error:
            raise CDNError(f"--fused: {error}") from None

    def total_steps(self, per_epoch: int) -> int:
        """Return the length of the run in steps, of which an epoch has ``per_epoch``."""
        return self.steps or (self.epochs or 0) * per_epoch  # one of the two is given

    def weights(self, progress: float) -> Weights:
        """Return the weights of the two terms, as arguments of :func:`cdn.joint_loss`.

        Args:
            progress: the share of the run that is done, in [0, 1]; lambda moves linearly from its first to its final
                value, because denoising saturates long before accuracy does.
        """
        first, last = self.denoising_weight, self.final_denoising_weight
        weight = first if last is None else first + progress * (last - first)
        return Weights(
            classification_weight=float(self.objective != "denoising"),
            denoising_weight=weight if self.objective != "classification" else 0.0,
            label_smoothing=self.label_smoothing,
        )

    def build_model(self, num_classes: int, in_channels: int, mean: Mean) -> Network:
        """Build the model with fresh weights.

        Raises:
            CDNError: an option the model does not take.
        """
        common: dict[str, Any] = dict(width=self.width, blocks=BLOCKS[self.model], stem=self.stem, mean=mean)
        try:
            if self.model.startswith("resnet"):
                return ResNet(num_classes, in_channels, **common)
            if self.model.startswith("denoiser"):
                return DirectDenoiser(in_channels, norm=self.norm, **common)
            return GradResNet(
                num_classes, in_channels, head=self.head, norm=self.norm, homogeneous=self.homogeneous, **common
            )
        except ValueError as error:
            raise CDNError(str(error)) from None

    def agree(self, other: "Settings") -> bool:
        """Say whether runs of these settings and of others take the same steps."""
        return replace(self, **{name: getattr(other, name) for name in FREE}) == other

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as they are written to ``config.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """Return the settings of a ``config.json``, ignoring what is not a setting.

        What an older version did not write down is as that version had it.

        Raises:
            CDNError: a value of another type, or options that contradict each other.
        """
        values = {**UNWRITTEN, **values}
        # None is what stands for a recipe's value, in settings that have one.
        form = {
            field.name: hint if field.default is not None else hint | None
            for field in fields(cls)
            for hint in [get_type_hints(cls)[field.name]]
        }
        if wrong := misfit(dict(values), form, "training"):
            raise CDNError(wrong)
        return cls(**{name: value for name, value in values.items() if name in form})
