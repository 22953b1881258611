"""The random words that all noise is made of, in plain PyTorch.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The key is the seed. The counter
is (block within the image, place in the batch, offset, offset and stream): the image at place i gets the same noise
whatever the batch size, the layout or the number of threads.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.types import Device

from cdn_kernels.noise import Noise

Word = TypeVar("Word", int, Tensor)
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF


def philox4x32(counter: Sequence[Word], key: tuple[int, int]) -> tuple[Word, Word, Word, Word]:
    """Apply the ten rounds of Philox4x32.

    Args:
        counter: four 32-bit words: integers, or int64 tensors (broadcastable).
        key: two 32-bit integers.

    Returns:
        Four 32-bit words, integers or int64 tensors.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The 64-bit product wraps in int64, which leaves both of its 32-bit halves right.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + _WEYL[0]) & MASK, (k1 + _WEYL[1]) & MASK
    return c0, c1, c2, c3


def random_words(batch: int, blocks: int, noise: Noise, stream: int, device: Device = None) -> Tensor:
    """Draw the 32-bit words of a stream: int64 [batch, blocks, 4] with values in [0, 2**32)."""
    block = torch.arange(blocks, device=device)[None, :]
    place = noise.placed(batch, block.device)[:, None] & MASK
    offset = noise.position(block.device)
    counter = torch.broadcast_tensors(block, place, *position_words(offset, stream))
    return torch.stack(philox4x32(counter, key_words(noise)), -1)


def position_words(offset: Word, stream: int) -> tuple[Word, Word]:
    """Return the last two words of the counter."""
    return offset & MASK, offset >> 32 | stream << 31


def key_words(noise: Noise) -> tuple[int, int]:
    """Return the two words of the key."""
    return noise.seed & MASK, noise.seed >> 32
