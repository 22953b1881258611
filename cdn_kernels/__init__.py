"""Operations of score-matching training: a reference in plain PyTorch, and faster kernels.

Every public function takes ``impl``: "auto" (the fastest that can run), "reference", or the name of a
backend. ``python -m cdn_kernels.info`` says what runs where.
"""
from . import reference
from .noise import Noise, NoiseLevels
from .ops.noise import sample_noise, sample_sigma, standard_normal

__version__ = "0.1.0"
__all__ = ["Noise", "NoiseLevels", "reference", "sample_noise", "sample_sigma", "standard_normal"]
