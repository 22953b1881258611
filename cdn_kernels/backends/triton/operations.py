"""The functions that this backend offers, with the arguments of those of ../cpu.py; tensors may lie on any one GPU."""
from .convolution import conv2d
from .convolution_choice import conv2d_is_faster
from .gelu import gelu
from .noise import add_noise, denoising, random_words, sample_noise, sample_sigma
from .norm import gelu_norm
from .pool import pool

__all__ = ["add_noise", "conv2d", "conv2d_is_faster", "denoising", "gelu", "gelu_norm", "pool", "random_words",
           "sample_noise", "sample_sigma"]
