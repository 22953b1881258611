"""Operations of score-matching training: a reference in plain PyTorch, and faster kernels.

Every public function takes ``impl``: "auto" (the fastest that can run), "reference", or the name of a
backend. ``python -m cdn_kernels.info`` says what runs where.
"""

from cdn_kernels import reference
from cdn_kernels.backends.dispatch import using
from cdn_kernels.graphs import Graphed
from cdn_kernels.memory import keep_pages
from cdn_kernels.modules import ConvGELU, GELUGroupNorm
from cdn_kernels.noise import Noise, NoiseLevels
from cdn_kernels.ops.activation import elu, gelu, silu
from cdn_kernels.ops.conv import conv2d, conv2d_gelu
from cdn_kernels.ops.conv_pair import conv2d_gelu_conv2d
from cdn_kernels.ops.denoising import denoising_loss
from cdn_kernels.ops.foreign import foreign
from cdn_kernels.ops.group_norm import group_norm
from cdn_kernels.ops.noise import sample_noise, sample_sigma, standard_normal
from cdn_kernels.ops.norm import gelu_group_norm
from cdn_kernels.ops.pool import channel_mean, energy
from cdn_kernels.ops.score import score
from cdn_kernels.ops.softmax import softmax
from cdn_kernels.recompute import recomputed
from cdn_kernels.reference import count_clean, cross_entropy, logsumexp
from cdn_kernels.step import first_order, score_matching_step

__version__ = "0.2.0"
__all__ = [
    "ConvGELU",
    "GELUGroupNorm",
    "Graphed",
    "Noise",
    "NoiseLevels",
    "channel_mean",
    "conv2d",
    "conv2d_gelu",
    "conv2d_gelu_conv2d",
    "count_clean",
    "cross_entropy",
    "denoising_loss",
    "elu",
    "energy",
    "first_order",
    "foreign",
    "gelu",
    "gelu_group_norm",
    "group_norm",
    "keep_pages",
    "logsumexp",
    "recomputed",
    "reference",
    "sample_noise",
    "sample_sigma",
    "score",
    "score_matching_step",
    "silu",
    "softmax",
    "standard_normal",
    "using",
]
