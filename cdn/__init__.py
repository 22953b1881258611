"""Classification-denoising networks: one network that classifies noisy images and, by its input gradient, denoises."""
from cdn_kernels import Noise, NoiseLevels

from .certification import Certificate, Protected, certify
from .density import calibrate, denoise, estimate_sigma, log_prob, score
from .distance import similarity
from .model import DirectDenoiser, GradResNet, ResNet, gradresnet18, gradresnet34, gradresnet_small
from .objective import joint_loss, joint_step
from .prior.denoiser import Denoiser
from .store import load, save_model

__all__ = ["Certificate", "Denoiser", "DirectDenoiser", "GradResNet", "Noise", "NoiseLevels", "Protected", "ResNet",
           "calibrate", "certify", "denoise", "estimate_sigma", "gradresnet18", "gradresnet34", "gradresnet_small",
           "joint_loss", "joint_step", "load", "log_prob", "save_model", "score", "similarity"]
