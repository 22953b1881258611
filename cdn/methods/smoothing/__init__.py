"""Certificates: majority votes under noise, the radius within which they stay, and what denoises for others."""

from cdn.methods.smoothing.certificate import ABSTAIN, Certificate, certify, largest_radius, predict_smoothed
from cdn.methods.smoothing.protected import LevelVote, Protected

__all__ = ["ABSTAIN", "Certificate", "LevelVote", "Protected", "certify", "largest_radius", "predict_smoothed"]
