"""How good a model is: metrics, their measurement on a test split, and pictures of what it does."""

from cdn.evaluation.evaluate import evaluate, predict
from cdn.evaluation.metrics import calibration_error, psnr, reliability, ssim
from cdn.evaluation.pictures import chains_picture, denoising_picture
from cdn.evaluation.plots import curves_picture, reliability_comparison, reliability_picture

__all__ = [
    "calibration_error",
    "chains_picture",
    "curves_picture",
    "denoising_picture",
    "evaluate",
    "predict",
    "psnr",
    "reliability",
    "reliability_comparison",
    "reliability_picture",
    "ssim",
]
