"""Operations of score-matching training: a reference in plain PyTorch, and faster kernels.

Every public function takes ``impl``: "auto" (the fastest that can run), "reference", or the name of a
backend. ``python -m cdn_kernels.info`` says what runs where.
"""
from . import reference
from .backends.dispatch import using
from .graphs import Graphed
from .memory import keep_pages
from .modules import ConvGELU, GELUGroupNorm
from .noise import Noise, NoiseLevels
from .ops.conv import conv2d, conv2d_gelu
from .ops.conv_pair import conv2d_gelu_conv2d
from .ops.denoising import denoising_loss
from .ops.foreign import foreign
from .ops.gelu import gelu
from .ops.noise import sample_noise, sample_sigma, standard_normal
from .ops.norm import gelu_group_norm
from .ops.pool import channel_mean, energy
from .ops.score import score
from .reference import cross_entropy, logsumexp
from .step import score_matching_step

__version__ = "0.1.0"
__all__ = [
    "ConvGELU", "GELUGroupNorm", "Graphed", "Noise", "NoiseLevels", "channel_mean", "conv2d", "conv2d_gelu",
    "conv2d_gelu_conv2d", "cross_entropy", "denoising_loss", "energy", "foreign", "gelu", "gelu_group_norm",
    "keep_pages", "logsumexp", "reference", "sample_noise", "sample_sigma", "score", "score_matching_step",
    "standard_normal", "using",
]
