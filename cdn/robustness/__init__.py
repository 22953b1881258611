"""Adversarial robustness: attacks within balls, curves of robust accuracy, and checks that gradients are not masked."""

from cdn.robustness.ball import NORMS, Ball, distance
from cdn.robustness.curves import ATTACKS, Adversarial, Sweep, attack, sweep
from cdn.robustness.masking import Verdict, masking_checks

__all__ = [
    "ATTACKS",
    "NORMS",
    "Adversarial",
    "Ball",
    "Sweep",
    "Verdict",
    "attack",
    "distance",
    "masking_checks",
    "sweep",
]
