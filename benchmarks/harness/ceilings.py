"""What the machine allows, measured in the same rounds as what is judged by it: products and copies."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

# Large enough for the full rate, small enough for many rounds: the side of matrices, and [B, C, H, W] of images.
_SIDE = {"cpu": 1536, "cuda": 8192}
_IMAGES = {"cpu": (64, 128, 16, 16), "cuda": (512, 256, 16, 16)}


class Work(NamedTuple):
    """What a case cannot avoid.

    Attributes:
        flops: multiplications and additions, in dtype.
        bytes: of the tensors that it reads or writes, each once.
        dtype: of the products; None without any.
    """

    flops: int = 0
    bytes: int = 0
    dtype: torch.dtype | None = None

    def yardsticks(self, device):
        """Return {name: (function, share)}: what to time, and how much of this work it does."""
        found = {}
        if self.flops:
            for name, kind in (("matrix product", Product), ("convolution", Convolution)):
                case = kind(self.dtype, device)
                found[name] = case, case.flops / self.flops
        if self.bytes:
            copy = Copy(self.bytes // 2, device)
            found["copy"] = copy, copy.bytes / self.bytes
        return found


def floor(seconds, shares):
    """Return what a Work takes at least: its products as the faster of two do them, or its bytes, whichever is slower.

    Args:
        seconds: of its yardsticks, by name.
        shares: how much of the work each does.
    """
    needed = {name: seconds[name] / share for name, share in shares.items()}
    copy = needed.pop("copy", 0.0)
    return max(copy, min(needed.values(), default=0.0))


class Product:
    """A product of large square matrices."""

    def __init__(self, dtype, device="cpu"):
        side = _SIDE[device]
        self.a, self.b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        self.flops = 2 * side**3

    def __call__(self):
        torch.mm(self.a, self.b)


class Convolution:
    """A 3x3 convolution of PyTorch's, channels last; for some dtypes and processors faster than its matrix product."""

    def __init__(self, dtype, device="cpu"):
        place = dict(memory_format=torch.channels_last)
        channels = _IMAGES[device][1]
        self.x = torch.randn(_IMAGES[device], device=device).to(dtype).contiguous(**place)
        self.weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype).contiguous(**place)
        self.flops = 2 * self.x.numel() * self.weight[0].numel()

    def __call__(self):
        F.conv2d(self.x, self.weight, padding=1)


class Copy:
    """A copy between two buffers, of as many bytes as the work it is compared with: as much fits a cache."""

    def __init__(self, size, device="cpu"):
        self.source = torch.ones(max(1, size), dtype=torch.uint8, device=device)
        self.target = torch.zeros_like(self.source)
        self.bytes = 2 * self.source.nbytes

    def __call__(self):
        self.target.copy_(self.source)
