"""Detection of non-finite steps, without waiting for the device."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cdn.errors import DivergedError

TERMS = ("classification", "denoising", "contrastive", "gradient")


class Health:
    """Count skipped steps on the device, and which term of the loss was not finite in them.

    A step with a non-finite loss or gradient is skipped; ``patience`` of them in a row stop the run.

    Args:
        device: where the counters live.
        patience: number of consecutive skipped steps that :meth:`check` does not tolerate.
    """

    def __init__(self, device: torch.device, patience: int = 10) -> None:
        self.patience = patience
        # skipped in all, skipped in a row, most in a row, then one counter for each term
        self.counters = torch.zeros(3 + len(TERMS), dtype=torch.int64, device=device)

    def observe(self, parts: Mapping[str, Tensor], gradient_norm: Tensor) -> Tensor:
        """Record a step and return a flag on the device: 1.0 if it has to be skipped.

        Args:
            parts: the terms of the loss, as :func:`cdn.joint_loss` returns them.
            gradient_norm: of all parameters, a scalar tensor.
        """
        finite = torch.ones((), dtype=torch.bool, device=self.counters.device)
        bad = []
        for term in TERMS[:-1]:
            bad.append(~torch.isfinite(parts[term]) if term in parts else ~finite)
        terms_bad = torch.stack(bad).any()
        gradient_bad = ~torch.isfinite(gradient_norm)
        # A gradient that is bad because a term is bad is that term's fault.
        blame = torch.stack([*bad, gradient_bad & ~terms_bad]).long()
        skip = (terms_bad | gradient_bad).long()
        self.counters[0] += skip
        self.counters[1] = (self.counters[1] + 1) * skip
        self.counters[2] = torch.maximum(self.counters[2], self.counters[1])
        self.counters[3:] += blame
        return skip.float()

    def check(self) -> int:
        """Read the counters back and return the number of skipped steps.

        Raises:
            DivergedError: ``patience`` steps in a row were skipped.
        """
        skipped, _, longest, *_ = self.counters.tolist()
        if longest >= self.patience:
            raise DivergedError(
                f"{longest} steps in a row were not finite: {self._blame()}; none of them changed the "
                "weights. Try a smaller learning rate or more noise (sigma_low, jem_input_noise)."
            )
        return skipped

    def remark(self, steps: int) -> str | None:
        """Return a sentence on how many of the steps were skipped and why; None if none was."""
        skipped = int(self.counters[0])
        if not skipped:
            return None
        return f"{skipped:,} of {steps:,} steps were skipped, as they were not finite: {self._blame()}"

    def _blame(self) -> str:
        terms = self.counters[3:].tolist()
        return ", ".join(f"{name} ({count} times)" for name, count in zip(TERMS, terms) if count)
