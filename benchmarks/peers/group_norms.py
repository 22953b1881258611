"""Fused group normalizations of other libraries, where they are installed: for NVIDIA GPUs, and of first order."""

import importlib.util

import torch


def installed(groups):
    """Return functions of (h [B, C, H, W], gain [C], eps) by the name of their library.

    apex (NVIDIA) takes channels last, Liger contiguous images, which it is given by a copy that counts.

    Args:
        groups: number of groups.
    """
    found = {"apex.contrib.group_norm": ("apex GroupNorm", _apex), "liger_kernel": ("Liger GroupNorm", _liger)}
    return {name: make(groups) for package, (name, make) in found.items() if _exists(package)}


def _apex(groups):
    from apex.contrib.group_norm import GroupNorm

    def norm(h, gain, eps):
        module = GroupNorm(groups, len(gain), eps=eps, affine=True, device=h.device)
        parameters = dict(weight=gain, bias=torch.zeros_like(gain))
        return torch.func.functional_call(module, parameters, h.contiguous(memory_format=torch.channels_last))

    return norm


def _liger(groups):
    from liger_kernel.ops.group_norm import LigerGroupNormFunction

    def norm(h, gain, eps):
        return LigerGroupNormFunction.apply(
            h.contiguous(), gain.to(h.dtype), torch.zeros_like(gain, dtype=h.dtype), len(gain), groups, eps
        )

    return norm


def _exists(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False
