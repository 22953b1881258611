"""Changes of a trainer that no setting makes: what studies tried, beside the settings."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cdn.data.sampler import steps_per_epoch
from cdn.model.gradresnet import Filters
from cdn.model.head import DEEP_ENERGY
from cdn.noise_keys import FLIPS
from cdn.training.trainer import Trainer

# Images that the covariance of patches is taken from, and the least variance that is scaled to 1: less is noise.
_PATCH_IMAGES, _LEAST_VARIANCE = 5000, 5e-4


def fixed_norm(trainer: Trainer, wanted: bool) -> None:
    """Let Muon keep the norms of the filters of the trunk, or not."""
    for group in trainer.optimizer.param_groups:
        group["fixed_norm"] = group.get("fixed_norm", False) and wanted


def deep_energy(trainer: Trainer, size: float) -> None:
    """Set how large the energies of all stages but the first are at the start."""
    for path, energy in trainer.model.named_parameters():
        if path.startswith("head.maps.") and not path.endswith(".0"):
            energy.mul_(size / DEEP_ENERGY)


def whitened_stem(trainer: Trainer, frozen: bool) -> None:
    """Let the stem see whitened patches, as in Jordan's airbench, and keep it so if frozen.

    Its filters are random mixtures of all whitened directions, since a narrow stem has fewer filters than patches have
    dimensions, and to leave some out would hide what they see.
    """
    weight = trainer.model.trunk.stem[0].weight  # type: ignore[union-attr,index]  # of the networks that are studied
    images, _ = trainer.dataset.train.images(trainer.dataset.train.first(_PATCH_IMAGES))
    patches = F.unfold(images - images.mean((0, 2, 3), keepdim=True), weight.shape[-1]).transpose(0, 1).flatten(1)
    variances, directions = torch.linalg.eigh(patches.double() @ patches.double().T / patches.shape[1])
    whitening = directions / (variances + _LEAST_VARIANCE).sqrt()
    mixture = torch.empty(len(weight), len(variances), dtype=torch.float64)
    nn.init.orthogonal_(mixture)
    weight.copy_((mixture @ whitening.T).view_as(weight))
    weight.requires_grad_(not frozen)


def identity_filters(trainer: Trainer, wanted: bool) -> None:
    """Let every 3x3 filter of the blocks that has an input of its own start by passing it on, with its norm."""
    for module in trainer.model.trunk.stages.modules():  # type: ignore[union-attr]  # as above
        if wanted and isinstance(module, Filters) and module.weight.shape[-1] == 3:
            weight = module.weight
            norms = weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            own = min(weight.shape[:2])
            nn.init.dirac_(weight[:own])
            weight[:own] *= norms[:own]


def alternating_flips(trainer: Trainer, wanted: bool) -> None:
    """Mirror each image in every other epoch, half of them in the first (Jordan 2024, airbench)."""
    if not wanted:
        return
    batches = trainer.batches
    size = len(batches.split)
    draw, period = batches._draw, steps_per_epoch(size, batches.batch_size)
    first = torch.randint(2, (size,), generator=FLIPS.generator(batches.seed))

    def alternating(step: int) -> torch.Tensor:
        rows = draw(step)
        rows[3] = (first[rows[0]] + step // period) % 2
        return rows

    batches._draw = alternating  # type: ignore[method-assign]


def clean_shares(trainer: Trainer, shares: Sequence[float]) -> None:
    """Leave a share of the images clean that changes over the run, in parts of equal length."""
    if not shares:
        return
    prepare = trainer.prepare

    def prepare_with_share() -> None:
        share = shares[trainer.step * len(shares) // trainer.steps]
        trainer.settings = replace(trainer.settings, clean_share=share)
        prepare()

    trainer.prepare = prepare_with_share  # type: ignore[method-assign]


# Each takes the trainer before its first step, and a value.
CHANGES: dict[str, Callable[[Trainer, Any], None]] = {
    change.__name__: change
    for change in (fixed_norm, deep_energy, whitened_stem, identity_filters, alternating_flips, clean_shares)
}
