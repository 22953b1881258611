"""An estimate of the memory that a large image takes, before it is taken."""

import os
from pathlib import Path

import torch
from torch import Tensor

from cdn.errors import CDNError
from cdn.images.tiles import SMALLEST
from cdn.model import Network
from cdn.model.capabilities import has_density

SIDE = 64
# Peak memory over kept activations, as measured on several models and sizes: 1.4 to 2.4 with a graph, as the
# backward holds gradients of the largest feature maps beside them, and about 0.35 without.
WITH_GRAPH, WITHOUT_GRAPH = 2.0, 0.5
WORTH_SAYING = 1 << 30


def bytes_per_pixel(model: Network) -> float:
    """Measure the bytes of activations that the graph of a model keeps per pixel of its input.

    Runs the model on one image of 64x64 and sums the storages that are saved for a backward, without the
    parameters.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    reference = next(model.parameters())
    y = reference.new_zeros(1, model.config["in_channels"], SIDE, SIDE)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(y.requires_grad_())
    return sum(kept.values()) / SIDE**2


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device, or None where it cannot be told.

    Limitations: on the CPU it is that of the machine; a smaller limit of a container is not seen.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def require_memory(model: Network, height: int, width: int, device: torch.device, advice: str) -> str | None:
    """Estimate the memory of denoising or classifying one image, and refuse what does not fit.

    Args:
        model: the model, on the device.
        height, width: of the image, in pixels.
        device: torch device.
        advice: what to do instead, an imperative.

    Returns:
        A sentence to print if the estimate exceeds 1 GiB, else None.

    Raises:
        CDNError: the estimate exceeds the available memory.
    """
    needed, available, sentence = _estimate(model, height, width, device)
    if available is not None and needed > available:
        raise CDNError(f"{sentence}: {advice}")
    return sentence if needed > WORTH_SAYING else None


def fitting_tile(model: Network, height: int, width: int, device: torch.device) -> tuple[int | None, str | None]:
    """Return the side of tiles in which an image can be denoised, None for the image as a whole, and a sentence on it.

    The sentence is None where there is nothing to say: the image as a whole takes less than 1 GiB.

    Raises:
        CDNError: there is no memory even for small tiles.
    """
    needed, available, sentence = _estimate(model, height, width, device)
    if available is None or needed <= available:
        return None, sentence if needed > WORTH_SAYING else None
    # Half of what there is leaves room for the whole image, its score and the result.
    side = int((available / 2 / (needed / (height * width))) ** 0.5) // SIDE * SIDE
    if side < SIDE:
        raise CDNError(f"{sentence}: there is no memory for tiles of it either")
    return side, f"{sentence}: taken in tiles of {side} pixels, which comes close to the image as a whole"


def advise_tile(tile: int | None) -> str:
    """Return the advice to take tiles, or smaller ones than those of a given side."""
    return f"use --tile {max(min(256, tile // 2) if tile else 256, SMALLEST)}"


def _estimate(model: Network, height: int, width: int, device: torch.device) -> tuple[float, int | None, str]:
    """Return the bytes that an image takes, those that are available, and both in a sentence."""
    factor = WITH_GRAPH if has_density(model) else WITHOUT_GRAPH
    needed = factor * bytes_per_pixel(model) * height * width
    available = available_bytes(device)
    free = "" if available is None else f", and {_gib(available)} are available"
    return needed, available, f"{width}x{height} pixels take about {_gib(needed)} of memory{free}"


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
