"""Adversarial robustness: attacks within balls, curves of robust accuracy, and checks that gradients are not masked."""
from .ball import NORMS, Ball, distance
from .masking import Verdict, masking_checks
from .sweep import ATTACKS, Adversarial, Sweep, attack, sweep

__all__ = ["ATTACKS", "NORMS", "Adversarial", "Ball", "Sweep", "Verdict", "attack", "distance", "masking_checks",
           "sweep"]
