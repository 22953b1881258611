"""Certificates: majority votes under noise, the radius within which they stay, and what denoises for others."""

from cdn.certification.protected import LevelVote, Protected
from cdn.certification.smoothing import ABSTAIN, Certificate, certify, largest_radius, predict_smoothed

__all__ = ["ABSTAIN", "Certificate", "LevelVote", "Protected", "certify", "largest_radius", "predict_smoothed"]
