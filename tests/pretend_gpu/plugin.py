"""A plugin of pytest that pretends that there is a GPU, to run on a processor what runs on GPUs only.

    python -m pytest -n auto -m imitated -p tests.pretend_gpu.plugin FILE ...

Tensors of device "cuda" exist, and refuse to meet those of the processor, see device.cpp. The backend called triton is
the CPU's kernels on their memory. Streams, events and graphs do at once what they are told to do later, so that only
what is done is seen, not when. To be loaded before torch, into builds without CUDA: by -p, which comes before all
conftest.py. All tests of such a run are marked ``imitated``.
"""

import contextlib
import time
from types import SimpleNamespace

import pytest

from tests.pretend_gpu.device import load

load()

import torch  # noqa: E402 - after the device

import cdn_kernels.backends.triton as triton  # noqa: E402
from cdn_kernels import graphs  # noqa: E402
from cdn_kernels.backends import cpu, dispatch  # noqa: E402


@pytest.hookimpl(tryfirst=True)  # before marks are looked at
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker("imitated")


class Stream:
    """The one stream."""

    device, cuda_stream = torch.device("cuda", 0), 0

    def __init__(self, *args):
        pass

    def __eq__(self, other):
        return isinstance(other, Stream)

    def wait_stream(self, other):
        pass


class Event:
    """A moment."""

    def __init__(self, enable_timing=False):
        self.seconds = None

    def record(self):
        self.seconds = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.seconds - self.seconds)


class HostKernels:
    """The kernels of the CPU, on tensors of the device."""

    @staticmethod
    def conv2d_is_faster(*args):
        return False

    def __getattr__(self, name):
        host = lambda value: torch.ops.pretend_gpu.host(value) if isinstance(value, torch.Tensor) else value
        return lambda *args, **options: getattr(cpu, name)(
            *map(host, args), **{key: host(value) for key, value in options.items()}
        )


def storage_on(device, storage):
    """Return a storage on a device, the same if it is there."""
    if storage.device.type == torch.device(device).type:
        return storage
    return torch.empty(storage.nbytes(), dtype=torch.uint8, device=device).untyped_storage().copy_(storage, False)


def pretend():
    """Let torch.cuda and the library find the device."""
    properties = SimpleNamespace(
        name="a GPU that is not there", major=9, minor=0, multi_processor_count=132, total_memory=1 << 30
    )
    always = lambda value: lambda *args, **options: value  # a new one each time: torch.compile tells them apart
    for name, value in dict(
        is_available=always(True),
        is_initialized=always(True),
        init=always(None),
        _lazy_init=always(None),
        device_count=always(1),
        current_device=always(0),
        set_device=always(None),
        _exchange_device=always(0),
        _maybe_exchange_device=always(0),
        get_device_name=always(properties.name),
        get_device_capability=always((9, 0)),
        get_device_properties=always(properties),
        is_bf16_supported=always(True),
        mem_get_info=always((1 << 30, 1 << 30)),
        synchronize=always(None),
        memory_allocated=always(0),
        max_memory_allocated=always(0),
        reset_peak_memory_stats=always(None),
        empty_cache=always(None),
        set_sync_debug_mode=lambda mode: torch.ops.pretend_gpu.forbid_waiting(mode == "error"),
        manual_seed_all=always(None),
        is_current_stream_capturing=always(False),
        _sleep=always(None),
        Stream=Stream,
        Event=Event,
        stream=lambda stream: contextlib.nullcontext(),
        current_stream=always(Stream()),
        default_stream=always(Stream()),
        get_rng_state=lambda *args: torch.get_rng_state(),
        set_rng_state=always(None),
    ).items():
        setattr(torch.cuda, name, value)
    torch.version.cuda = "13.0"
    torch.Tensor.pin_memory = lambda self, *args: self
    torch.UntypedStorage.to = lambda self, *, device, non_blocking=False: storage_on(device, self)
    torch.UntypedStorage.clone = lambda self: (
        torch.empty(self.nbytes(), dtype=torch.uint8, device=self.device).untyped_storage().copy_(self)
    )
    graphs.Graphed.__init__.__kwdefaults__["record"] = lambda function, stream: function
    triton.INSTALLED = True
    dispatch._LOADED["triton"] = HostKernels()


pretend()
