"""Randomized smoothing: certificates, and classifiers behind a denoiser."""

from cdn.methods.smoothing.certificate import ABSTAIN, Certificate, certify, largest_radius, predict_smoothed
from cdn.methods.smoothing.protected import LevelVote, Protected

__all__ = ["ABSTAIN", "Certificate", "LevelVote", "Protected", "certify", "largest_radius", "predict_smoothed"]
