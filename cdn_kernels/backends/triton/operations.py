"""The functions that this backend offers, with the arguments of those of ../cpu.py; tensors may lie on any one GPU."""
from .gelu import gelu
from .noise import add_noise, denoising, random_words, sample_noise, sample_sigma
from .norm import gelu_norm
from .pool import pool

__all__ = ["add_noise", "denoising", "gelu", "gelu_norm", "pool", "random_words", "sample_noise", "sample_sigma"]
