"""The optimizer and its schedule, as chosen in docs/ablations.md."""
import math

import torch


def make_optimizer(model, learning_rate, weight_decay):
    """Build AdamW with decay on filters and matrices only, not on the gains of the norms.

    ``fused=True`` is more than speed: it is the implementation that can be told to skip a step by a flag on the
    device (``found_inf``), so that non-finite gradients cost no synchronization.
    """
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [dict(params=decayed, weight_decay=weight_decay), dict(params=plain, weight_decay=0.0)]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=(0.9, 0.99), fused=True)


def learning_rate(step, steps, peak, warmup):
    """Return the learning rate of a 0-based step: linear warm-up, then half a cosine down to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
