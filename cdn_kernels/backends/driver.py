"""Say why torch finds no GPU."""

import ctypes

import torch


def why_no_gpu() -> str | None:
    """Return None if torch can use an NVIDIA GPU, or the reason why not."""
    if torch.version.hip:
        return "it was written for NVIDIA GPUs, and this torch is for those of AMD"
    if torch.version.cuda is None:
        return f"this torch, {torch.__version__}, was built without CUDA"
    if torch.cuda.is_available():
        return None
    driver = driver_version()
    if driver is None:
        return "there is no NVIDIA driver"
    # Within a major version of CUDA, drivers run what newer toolkits compiled.
    if driver // 1000 < int(torch.version.cuda.partition(".")[0]):
        return (
            f"the driver supports CUDA {driver // 1000}.{driver % 1000 // 10}, older than CUDA "
            f"{torch.version.cuda} that this torch was built with: install a newer driver, or a torch for the CUDA "
            "of the driver"
        )
    return "there is no CUDA device"


def driver_version() -> int | None:
    """Return the latest CUDA that the driver supports, 13000 for 13.0; None where there is no driver."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            version = ctypes.c_int()
            return version.value if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(version)) == 0 else None
        except OSError:
            continue
    return None
