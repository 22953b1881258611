"""The functions that this backend offers, with the arguments of those of ../cpu.py; tensors may lie on any one GPU."""

from cdn_kernels.backends.triton.convolution import conv2d
from cdn_kernels.backends.triton.convolution_choice import conv2d_is_faster
from cdn_kernels.backends.triton.gelu import gelu
from cdn_kernels.backends.triton.noise import add_noise, denoising, random_words, sample_noise, sample_sigma
from cdn_kernels.backends.triton.norm import gelu_norm
from cdn_kernels.backends.triton.pool import pool

__all__ = [
    "add_noise",
    "conv2d",
    "conv2d_is_faster",
    "denoising",
    "gelu",
    "gelu_norm",
    "pool",
    "random_words",
    "sample_noise",
    "sample_sigma",
]
