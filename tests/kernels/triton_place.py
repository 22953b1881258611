"""Where the Triton kernels run in this process: on a GPU, or on the CPU where Triton's interpreter is asked for."""

import torch

from cdn_kernels.backends.triton import INTERPRETED, can_use_triton

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
ON_GPU = torch.cuda.is_available() and not INTERPRETED
MISSING = can_use_triton(DEVICE, torch.float32)  # why they cannot run there
