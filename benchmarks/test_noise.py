"""Time noise on batches of CIFAR's shape: ``pytest benchmarks/test_noise.py`` (needs pytest-benchmark).

"torch" is what one would write without the library: ``x + sigma * torch.randn_like(x)``. Bytes count the
images read and written once, so they compare with the bandwidth of a copy.
"""
import pytest
import torch

from cdn_kernels import Noise, sample_noise
from cdn_kernels.backends import cpu

IMPLEMENTATIONS = {
    "cpu": lambda x, sigma: sample_noise(x, sigma, Noise(0), impl="cpu")[0],
    "torch": lambda x, sigma: x + sigma.to(x.dtype).view(-1, 1, 1, 1) * torch.randn_like(x),
    "reference": lambda x, sigma: sample_noise(x, sigma, Noise(0), impl="reference")[0],
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 128])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_add_noise(benchmark, name, batch, dtype, layout):
    if name == "cpu" and cpu.MISSING:
        pytest.skip(cpu.MISSING)
    benchmark.group = f"batch {batch}, {dtype}, {layout}"
    x = torch.rand(batch, 3, 32, 32).to(dtype).contiguous(memory_format=layout)
    benchmark(IMPLEMENTATIONS[name], x, torch.rand(batch))
    if benchmark.stats:  # none under --benchmark-disable
        benchmark.extra_info |= {
            "bytes_per_second": 2 * x.nbytes / benchmark.stats["median"], "threads": torch.get_num_threads(),
            "torch": torch.__version__, "capability": cpu.CAPABILITY}
