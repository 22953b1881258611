"""Metrics of a model, and their measurement on a test split."""

from cdn.evaluation.evaluate import SIGMAS, evaluate, predict
from cdn.evaluation.metrics import calibration_error, psnr, reliability, ssim

__all__ = ["SIGMAS", "calibration_error", "evaluate", "predict", "psnr", "reliability", "ssim"]
