"""The optimizer and its schedule, as chosen in docs/ablations.md."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cdn.processes import Processes
from cdn.run_folder.forms import misfit
from cdn.training.muon import Muon
from cdn.training.muon_division import Division

OPTIMIZERS = ("adamw", "muon")

# Layers that touch pixels or classes: their matrices are not maps between features, and AdamW keeps them.
_OUTER = {"stem", "classes", "logits", "out"}


class Optimizers:
    """Several optimizers as one: each steps its own parameters.

    ``found_inf``, a flag on the device, makes all of them skip the next step.
    """

    def __init__(self, *members: Optimizer) -> None:
        self.members = members
        self.found_inf: Tensor | None = None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all members, as the members keep them."""
        return [group for member in self.members for group in member.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        """What the members keep of each parameter."""
        return {p: state for member in self.members for p, state in member.state.items()}

    def zero_grad(self) -> None:
        """Clear the gradients of all parameters."""
        for member in self.members:
            member.zero_grad()

    def step(self) -> None:
        """Update all parameters, unless ``found_inf`` is set and not 0."""
        # Only while it happens, since torch warns of optimizers that could be recorded and are not.
        recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        for member in self.members:
            member.found_inf = self.found_inf  # type: ignore[attr-defined]  # torch reads it, and declares it nowhere
            for group in member.param_groups:
                group["capturable"] = recording
            member.step()

    def divide(self, processes: Processes) -> None:
        """From now on, share the work of a step that needs all of a gradient but not all of its processes."""
        for member in self.members:
            if isinstance(member, Muon):
                member.orthogonalized = Division(processes)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return what :meth:`load_state_dict` takes, an item per member."""
        return [member.state_dict() for member in self.members]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take over what the members keep of each parameter; the settings of a run make all else anew.

        Raises:
            TypeError, ValueError: it is that of other members or parameters.
        """
        for member, state in zip(self.members, states, strict=True):
            groups, name = member.state_dict()["param_groups"], type(member).__name__
            parameters = [p for group in member.param_groups for p in group["params"]]
            # A parameter that never had a gradient has no entry.
            form = dict(
                state={index: _kept(member, p) for index, p in enumerate(parameters) if index in state["state"]}
            )
            if wrong := misfit(dict(state=state["state"]), form, name, whole=True):
                raise ValueError(wrong)
            member.load_state_dict(dict(state=state["state"], param_groups=groups))


def _kept(member: Optimizer, p: Tensor) -> dict[str, Tensor]:
    """Return the form of what an optimizer keeps of a parameter."""
    return (
        dict(momentum_buffer=p)
        if isinstance(member, Muon)
        else dict(step=torch.zeros((), dtype=torch.float32), exp_avg=p, exp_avg_sq=p)
    )


def make_optimizer(model: nn.Module, name: str, learning_rate: float, weight_decay: float) -> Optimizers:
    """Build AdamW, or Muon for the filters and matrices between features and AdamW for all else.

    Muon keeps the norm of the filters of the trunk. A scale-preserving network is free to let the scale of its stages
    run away, each block some times larger than the one before, until the last drowns the others in the head; fixed
    norms rule that out (docs/ablations.md). The maps of the head, whose scale means something, keep theirs free.

    Weight decay acts on filters and matrices only, not on the gains of the norms. ``fused=True`` is more than speed:
    it is the implementation that can be told to skip a step by a flag on the device (``found_inf``), so that
    non-finite gradients cost no synchronization.

    Args:
        name: one of OPTIMIZERS.
    """
    filters: list[Tensor] = []
    maps: list[Tensor] = []
    outer: list[Tensor] = []
    gains: list[Tensor] = []
    for path, p in model.named_parameters():
        hidden = name == "muon" and not _OUTER & set(path.split("."))
        group = gains if p.dim() <= 1 else outer if not hidden else maps if path.startswith("head.") else filters
        group.append(p)
    groups = [dict(params=outer, weight_decay=weight_decay), dict(params=gains, weight_decay=0.0)]
    members: list[Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=(0.9, 0.99), fused=True)
    ]
    if filters:
        inner = [dict(params=filters, fixed_norm=True, weight_decay=0.0), dict(params=maps, weight_decay=weight_decay)]
        members.append(Muon([g for g in inner if g["params"]], learning_rate))
    return Optimizers(*members)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Return the learning rate of a 0-based step: linear warm-up, then half a cosine down to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
