"""Adversarial robustness: attacks within balls, curves of robust accuracy, and checks that gradients are not masked."""

from cdn.methods.attacks.ball import NORMS, Ball, distance
from cdn.methods.attacks.masking import Verdict, masking_checks
from cdn.methods.attacks.sweep import ATTACKS, Adversarial, Sweep, attack, sweep

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
