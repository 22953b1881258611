"""Muon: momentum whose matrices are orthogonalized, for the filters inside a network."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Of the quintic iteration x -> a x + b x^3 + c x^5 on singular values, and the number of its steps (Jordan 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return a matrix with the singular vectors of the given one and singular values of about 1.

    Newton-Schulz iteration after K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    It is made to be quick, not exact: singular values end between 0.7 and 1.2, small ones below.

    Returns:
        of the dtype of :func:`result_dtype`, in which it is computed.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = (x / x.norm().clamp(min=1e-7)).to(result_dtype(matrix))
    x = _iterated(x) if x.dtype == torch.bfloat16 else _combined(x) @ x
    return x.T if tall else x


def result_dtype(matrix: Tensor) -> torch.dtype:
    """Return the dtype in which a matrix is orthogonalized: bfloat16 on GPUs, on CPUs its own, float64 everywhere.

    GPUs multiply bfloat16 at many times the rate of float32; CPUs at twice its rate, if not at a thirtieth.
    """
    return matrix.dtype if matrix.device.type == "cpu" or matrix.dtype == torch.float64 else torch.bfloat16


def orthogonalize_all(matrices: list[Tensor]) -> list[Tensor]:
    """Return :func:`orthogonalize` of each matrix."""
    return [orthogonalize(matrix) for matrix in matrices]


def _iterated(x: Tensor) -> Tensor:
    """Return x after all steps, [m, n] as x, m at most n."""
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _combined(x: Tensor) -> Tensor:
    """Return the matrix [m, m] that takes x, [m, n], to what it is after all steps.

    Every step multiplies x by a polynomial of its Gram matrix, and that of the next step is the same polynomial of it.
    So all steps but the last product work on [m, m]: a third of the operations of filters [m, 9 m]. It squares singular
    values, for which bfloat16 has too few digits.
    """
    a, b, c = COEFFICIENTS
    gram, combined = x @ x.T, None
    for step in range(STEPS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        combined = factor if combined is None else factor @ combined
        if step < STEPS - 1:
            gram = factor @ gram @ factor
    assert combined is not None
    return combined


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

    Attributes:
        orthogonalized: what orthogonalizes a list of matrices; :class:`.muon_division.Division` shares them out.

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
        self.orthogonalized: Callable[[list[Tensor]], list[Tensor]] = orthogonalize_all
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.dim() < 2:
                raise ValueError(f"Muon: parameters must have two or more dimensions, got shape {list(p.shape)}")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure: a step computes no gradients
        """Update every parameter that has a gradient, unless ``found_inf`` is set and not 0."""
        found = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        directions = self.orthogonalized([self._direction(p, group["momentum"]) for p, group in found])
        for (p, group), direction in zip(found, directions):
            self._move(p, direction, group)

    def _direction(self, p: Tensor, momentum: float) -> Tensor:
        """Take the gradient of a parameter into its mean, and return Nesterov's look ahead as a matrix."""
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        gradient, buffer = p.grad, state["momentum_buffer"]
        assert gradient is not None
        mean = buffer.lerp(gradient, 1 - momentum)
        buffer.copy_(self._unless_skipped(mean, buffer))
        return gradient.lerp(mean, momentum).flatten(1)

    def _move(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        update = direction.to(p.dtype).view_as(p)
        rate = group["lr"] * 0.2 * max(p.shape[0], p[0].numel()) ** 0.5
        stepped = torch.addcmul(p.mul(1 - group["lr"] * group["weight_decay"]), update, _number(rate, p), value=-1)
        if group["fixed_norm"]:
            stepped.mul_(p.norm() / stepped.norm().clamp(min=torch.finfo(p.dtype).tiny))
        p.copy_(self._unless_skipped(stepped, p))

    def _unless_skipped(self, new: Tensor, old: Tensor) -> Tensor:
        skip = getattr(self, "found_inf", None)
        return new if skip is None else torch.where(skip > 0, old, new)


def _number(value: float | Tensor, p: Tensor) -> Tensor:
    """Return a number or tensor [] as a tensor [] in the dtype of a parameter, on its device."""
    return value.to(p.dtype) if isinstance(value, torch.Tensor) else p.new_full((), value)
