"""What a model can do, by its kind and by what it was trained on."""

from torch import nn

from cdn.model.baselines import DirectDenoiser, ResNet


def classifies(model: nn.Module, objective: str | None = None) -> bool:
    """Say whether a model was trained to classify.

    Args:
        model: any of this package.
        objective: as in the settings of its run; None where nobody said.
    """
    return not isinstance(model, DirectDenoiser) and objective != "denoising"


def has_density(model: nn.Module, objective: str | None = None) -> bool:
    """Say whether logits were trained to be log-densities, which cross-entropy alone does not make them."""
    return not isinstance(model, (ResNet, DirectDenoiser)) and objective != "classification"


def denoises(model: nn.Module, objective: str | None = None) -> bool:
    """Say whether a model has a density, or is a denoiser."""
    return has_density(model, objective) or isinstance(model, DirectDenoiser)
