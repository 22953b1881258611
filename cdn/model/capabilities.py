"""The capabilities of a model: whether it has a density, denoises, classifies; of a wrapped model, those of the inner.

The one place that tells kinds of models apart: all others ask here.
"""

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from cdn.model.baselines import DirectDenoiser, ResNet
from cdn.model.gradresnet import Trunk
from cdn.model.network import Network

_WRAPPERS = (AveragedModel, nn.DataParallel, DistributedDataParallel)
_BATCH_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),  # which may keep statistics of batches
)
_DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU),
)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside wrappers that give its outputs, or else the model itself.

    These are AveragedModel, DataParallel and DistributedDataParallel of torch, what torch.compile returns, and a
    Sequential of one module.
    """
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile; its class has no public name
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.Sequential) and len(model) == 1:
            model = model[0]
        else:
            return model


class Opened:
    """A wrapped model: called as the wrapper is, with the attributes of the module inside."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._inner = model, unwrapped(model)

    def __call__(self, y: Tensor) -> Tensor:
        """Return what the wrapper does of images [B, C, H, W]."""
        return self._model(y)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def classifies(model: nn.Module, objective: str | None = None) -> bool:
    """Say whether a model was trained to classify.

    Args:
        model: any of this package, or any other with classes.
        objective: as in the settings of its run; None for what the model itself knows, if it was loaded, or else for
            all that its kind can do.
    """
    return not is_direct_denoiser(model) and _objective(model, objective) != "denoising"


def has_density(model: nn.Module, objective: str | None = None) -> bool:
    """Say whether logits were trained to be log-densities, which cross-entropy alone does not make them."""
    kinds = (ResNet, DirectDenoiser)
    return not isinstance(unwrapped(model), kinds) and _objective(model, objective) != "classification"


def denoises(model: nn.Module, objective: str | None = None) -> bool:
    """Say whether a model has a density, or is a denoiser."""
    return has_density(model, objective) or is_direct_denoiser(model)


def is_ours(model: nn.Module) -> bool:
    """Say whether a module is a network of this package, which can be saved and built again."""
    return isinstance(model, Network)


def is_direct_denoiser(model: nn.Module) -> bool:
    """Say whether the outputs of a model are the noise in its images, not logits."""
    return isinstance(unwrapped(model), DirectDenoiser)


def treats_images_alone(model: nn.Module) -> bool:
    """Say whether a model, as it is now, computes every image for itself, and the same again.

    A batch may then run in parts. The networks of this package do; of any other module it is not assumed: one that does
    says so by an attribute ``images_alone = True``. It is false in any case where a layer looks at the other images of
    a batch (BatchNorm that is training or keeps no statistics), draws numbers (dropout, RReLU, while training), or is
    parametrized, for spectral norms move with every forward.
    """
    inner = unwrapped(model)
    return getattr(inner, "images_alone", False) is True and not any(map(_mixes_images, inner.modules()))


def _mixes_images(layer: nn.Module) -> bool:
    if isinstance(layer, _BATCH_NORMS):
        return layer.training or not layer.track_running_stats
    if isinstance(layer, nn.utils.parametrize.ParametrizationList):
        return True
    draws = isinstance(layer, _DROPOUTS) or isinstance(getattr(layer, "dropout", None), float)  # of attention
    return draws and layer.training


def kind(model: nn.Module, objective: str | None = None) -> str:
    """Return what to call a model, by its kind and by what it was trained on, in errors."""
    inner = unwrapped(model)
    name = f"a {type(inner).__name__}"
    if isinstance(inner, ResNet):
        return f"{name}, which only classifies"
    if isinstance(inner, DirectDenoiser):
        return f"{name}, which knows no classes"
    objective = _objective(model, objective)
    return f"{name} trained on {objective} only" if objective in ("classification", "denoising") else name


def _objective(model: nn.Module, objective: str | None) -> str | None:
    inner = unwrapped(model)
    return inner.objective if objective is None and isinstance(inner, Network) else objective


def stage_features(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the features of every stage, a list of [B, C, H, W]."""
    h, trunk = x - model.get_buffer("mean"), model.get_submodule("trunk")
    if isinstance(trunk, Trunk):
        return trunk(h)
    stages: dict[int, Tensor] = {}
    for layer in cast(Iterable[nn.Module], trunk):
        h = layer(h)
        stages[h.shape[1]] = h  # each stage doubles the channels: the last of them is kept
    return list(stages.values())
