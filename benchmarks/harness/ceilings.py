"""What the machine allows, measured in the same rounds as what is judged by it: a copy and a matrix product."""
from typing import NamedTuple

import torch

# Of the matrices of the product: large enough for the full rate, small enough for many rounds.
_SIDE = {"cpu": 1536, "cuda": 8192}


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
            product = Product(self.dtype, device)
            found["matrix product"] = (product, product.flops / self.flops)
        if self.bytes:
            copy = Copy(self.bytes // 2, device)
            found["copy"] = (copy, copy.bytes / self.bytes)
        return found


class Product:
    """A product of large square matrices."""

    def __init__(self, dtype, device="cpu"):
        side = _SIDE[device]
        self.a, self.b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        self.flops = 2 * side**3

    def __call__(self):
        torch.mm(self.a, self.b)


class Copy:
    """A copy between two buffers, of as many bytes as the work it is compared with: as much fits a cache."""

    def __init__(self, size, device="cpu"):
        self.source = torch.ones(max(1, size), dtype=torch.uint8, device=device)
        self.target = torch.zeros_like(self.source)
        self.bytes = 2 * self.source.nbytes

    def __call__(self):
        self.target.copy_(self.source)
