"""Muon: momentum whose matrices are orthogonalized, for the filters inside a network."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Of the quintic iteration x -> a x + b x^3 + c x^5 on singular values, and the number of its steps (Jordan 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return a matrix with the singular vectors of the given one and singular values of about 1.

    It is computed and returned in bfloat16, that of a float64 matrix in float64.
    Newton-Schulz iteration after K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    It is made to be quick, not exact: singular values end between 0.7 and 1.2, small ones below.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix if matrix.dtype == torch.float64 else matrix.bfloat16()
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Step along the orthogonalized momentum of every matrix, at the length that AdamW's steps have.

    The arithmetic is that of ``torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")``, with three additions: filters
    [O, I, k, k] count as matrices [O, I k k]; ``fixed_norm`` moves a filter on the sphere of its norm; and
    ``found_inf``, a flag on the device like that of torch's fused optimizers, skips a step without waiting for it.

    Args:
        params: parameters of two or more dimensions.
        lr: the root mean square of a step's entries is 0.2 lr. In a group it may be a tensor [] on the device.
        momentum: of the running mean of the gradients, Nesterov's.
        weight_decay: decoupled, times lr.
        fixed_norm: scale every filter back to the Frobenius norm it had before the step.

    Raises:
        ValueError: a parameter of fewer than two dimensions.
    """

    found_inf: Tensor | None  # set by whoever wants a step to be skipped

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        fixed_norm: bool = False,
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, fixed_norm=fixed_norm))
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.dim() < 2:
                raise ValueError(f"Muon: parameters must have two or more dimensions, got shape {list(p.shape)}")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure: a step computes no gradients
        """Update every parameter that has a gradient, unless ``found_inf`` is set and not 0."""
        skip = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group, skip)

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any], skip: Tensor | None) -> None:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer, momentum = state["momentum_buffer"], group["momentum"]
        mean = buffer.lerp(gradient, 1 - momentum)
        update = orthogonalize(gradient.lerp(mean, momentum).flatten(1)).to(p.dtype).view_as(p)
        rate = group["lr"] * 0.2 * max(p.shape[0], p[0].numel()) ** 0.5
        stepped = torch.addcmul(p.mul(1 - group["lr"] * group["weight_decay"]), update, _number(rate, p), value=-1)
        if group["fixed_norm"]:
            stepped.mul_(p.norm() / stepped.norm().clamp(min=torch.finfo(p.dtype).tiny))
        if skip is not None:
            mean, stepped = torch.where(skip > 0, buffer, mean), torch.where(skip > 0, p, stepped)
        buffer.copy_(mean)
        p.copy_(stepped)


def _number(value: float | Tensor, p: Tensor) -> Tensor:
    """Return a number or tensor [] as a tensor [] in the dtype of a parameter, on its device."""
    return value.to(p.dtype) if isinstance(value, torch.Tensor) else p.new_full((), value)
