"""Classification-denoising networks: one network that classifies noisy images and, by its input gradient, denoises."""

from cdn.methods.distances.information import similarity
from cdn.methods.smoothing import Certificate, Protected, certify
from cdn.model import DirectDenoiser, GradResNet, ResNet, gradresnet18, gradresnet34, gradresnet_small
from cdn.model.density import Denoiser, calibrate, denoise, estimate_sigma, log_prob, score
from cdn.objective import WholeBatch, joint_loss, joint_step
from cdn.run_folder.weights import load, save_model
from cdn_kernels import Noise, NoiseLevels
from cdn_kernels import __version__ as __version__

__all__ = [
    "Certificate",
    "Denoiser",
    "DirectDenoiser",
    "GradResNet",
    "Noise",
    "NoiseLevels",
    "Protected",
    "ResNet",
    "WholeBatch",
    "calibrate",
    "certify",
    "denoise",
    "estimate_sigma",
    "gradresnet18",
    "gradresnet34",
    "gradresnet_small",
    "joint_loss",
    "joint_step",
    "load",
    "log_prob",
    "save_model",
    "score",
    "similarity",
]
