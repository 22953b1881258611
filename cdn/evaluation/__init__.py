"""Metrics of a model, and their measurement on a test split."""

from cdn.evaluation.evaluate import evaluate, predict
from cdn.evaluation.metrics import calibration_error, psnr, reliability, ssim

__all__ = ["calibration_error", "evaluate", "predict", "psnr", "reliability", "ssim"]
