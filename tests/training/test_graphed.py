"""Steps that never wait for the device, and their recording, as far as both can be seen without a GPU."""

import contextlib
import functools
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cdn.data import load_dataset
from cdn.training.recordings import Recordings
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer
from cdn_kernels.backends import cpu, dispatch
from cdn_kernels.graphs import WARM_UP, Graphed
from cdn_kernels.phases import watch
from cdn_kernels.torch_private import WrapperTensor

CPU, META = torch.device("cpu"), torch.device("meta")
ATEN = torch.ops.aten
# What makes the host wait until a GPU knows a value or a shape.
WAITS = {
    ATEN._local_scalar_dense,
    ATEN.item,
    ATEN.is_nonzero,
    ATEN.nonzero,
    ATEN.masked_select,
    ATEN.equal,
    ATEN._unique2,
    ATEN.unique_dim,
    ATEN.unique_consecutive,
    ATEN.bincount,
    ATEN.repeat_interleave,
}
INDEXED = {ATEN.index, ATEN.index_put, ATEN.index_put_}  # likewise, with masks
# What copies values of the host into a tensor.
COPIES = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.pin_memory}


class Refused(AssertionError):
    """A step did what the recording of a CUDA graph refuses."""


class OnTheDevice(TorchDispatchMode):
    """Refuse operations that wait for a device, or copy between devices; the inside of our own is not looked at."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        masks = any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:])
        if func.overloadpacket in WAITS or (func.overloadpacket in INDEXED and masks):
            raise Refused(f"{func} waits for the device")
        result = func(*args, **(kwargs or {}))
        tensors += [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        if len({t.device for t in tensors if t.dim()}) > 1:
            raise Refused(f"{func} copies between devices")
        return result


class NoValues(TorchFunctionMode):
    """Refuse tensors made of values of the host."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in COPIES and not isinstance(args[0], torch.Tensor):
            raise Refused(f"{func.__name__} copies from the host")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def nothing_refused():
    # Noise levels are looked at on the CPU alone, which takes the place of a device here.
    with mock.patch("cdn_kernels.noise.can_be_read", lambda x: False), NoValues(), OnTheDevice():
        yield


SETTINGS = {
    "default": dict(),
    "fused": dict(fused=True),
    "fused bf16 muon": dict(fused=True, precision="bf16", optimizer="muon", clean_share=0.5),
    "clean images": dict(fused=True, clean_share=0.3),
    "plain clean images": dict(clean_share=0.3, objective="denoising"),
    "moving lambda": dict(fused=True, final_denoising_weight=0.5, flip=True, crop_size=6, label_smoothing=0.1),
    "homogeneous": dict(homogeneous=True, head="log-energy", sigma_law="uniform", clip=0.0),
    "plain linear": dict(norm="plain", head="linear", sigma_law="fixed", fused=True),
    "classification": dict(objective="classification", fused=True),
    "denoiser": dict(model="denoiser-small", fused=True),
    "resnet": dict(model="resnet-small"),
}
kinds = pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def trainer(digits, device=CPU, **options):
    if options.get("fused") and cpu.MISSING:
        pytest.skip(cpu.MISSING)
    return Trainer(Settings(width=8, batch_size=16, steps=50, **options), digits, 50, device)


def recordings(one):
    return Recordings(one.work, lambda: one.clean, one.device, one.say)


@kinds
def test_a_step_never_waits_for_the_device(digits, options):
    one = trainer(digits, **options)
    one.advance()
    one.prepare()
    with nothing_refused():
        one.work()


@kinds
def test_a_step_stays_on_its_device(digits, options, monkeypatch):
    """On a device without values, where every operation that reads one, or a tensor of the CPU, fails."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)  # fused, it exists for devices with values only
    monkeypatch.setitem(dispatch.AUTOMATIC, "meta", ("cpu",))
    monkeypatch.setitem(dispatch._CAN_USE, "cpu", lambda device, dtype: None)
    one = trainer(digits, META, **options)
    one.prepare()
    with nothing_refused():
        scalars = one.work()
    assert scalars["loss"].device == META


@pytest.mark.parametrize(
    "broken",
    [
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.tensor(1.0) + x,
        lambda x: bool((x > 0).any()),
        lambda x: x.sum().item(),
        lambda x: x.to("meta"),
        lambda x: torch.as_tensor(0.5),
    ],
)
def test_what_waits_is_seen(broken):
    with pytest.raises(Refused), nothing_refused():
        broken(torch.ones(3))


# ------------------------------------------------------------------------------------------------------------
# The recording, by one for the CPU
# ------------------------------------------------------------------------------------------------------------


class Tape(TorchDispatchMode):
    """Record operations with the tensors and numbers that they were given, as a CUDA graph records kernels."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        wrapper = next((kind for kind in types if issubclass(kind, WrapperTensor)), None)
        if wrapper is not None:  # a graph sees what is done to the tensors inside
            with self:
                return wrapper.run(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        """Run the operations again, each into the memory that it wrote to."""
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(function, stream):
    tape = Tape()
    with tape:
        result = function()
    ran = []

    def replay():
        if ran:  # other than a CUDA graph, the tape has run what it recorded
            with torch.no_grad():
                tape.replay()
        ran.append(True)
        return result

    return replay


@pytest.mark.parametrize("options_of_graphed", [dict(record=record), dict(say=pytest.fail)], ids=["GPU", "CPU"])
@kinds
def test_replayed_steps_are_those_of_the_function(digits, monkeypatch, options, options_of_graphed):
    """All that changes from step to step comes from tensors: batch, noise, learning rate, lambda, and the average."""
    plain, recorded = trainer(digits, **options), trainer(digits, **options)
    monkeypatch.setattr(
        "cdn.training.recordings.Graphed", lambda work, device, say: Graphed(work, device, **options_of_graphed)
    )
    plain.run, recorded.run = plain.work, recordings(recorded)
    for _ in range(WARM_UP + 4):
        expected, found = plain.advance(), recorded.advance()
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    for name in ("model", "average"):
        pairs = zip(getattr(plain, name).state_dict().values(), getattr(recorded, name).state_dict().values())
        assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(a, b) for a, b in zip(plain.health.counters, recorded.health.counters))


def test_every_number_of_clean_images_is_recorded(digits, monkeypatch):
    """Steps of 4 and of 5 clean images, in the order in which they come."""
    monkeypatch.setattr("cdn.training.recordings.Graphed", functools.partial(Graphed, record=record))
    options = SETTINGS["clean images"]
    plain, recorded = trainer(digits, **options), trainer(digits, **options)
    recorded.run = found_by = recordings(recorded)
    counts = []
    for _ in range(4 * WARM_UP + 4):
        expected, found = plain.advance(), recorded.advance()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        counts.append(recorded.clean)
    assert set(counts) == found_by.by_kind.keys() == {(4,), (5,)}
    assert all(one.replay for one in found_by.by_kind.values())
    assert any(a != b for a, b in zip(counts[-6:], counts[-5:]))  # replays of both, in turn
    for a, b in zip(plain.model.parameters(), recorded.model.parameters()):
        assert torch.equal(a, b)


def test_a_restored_trainer_records_anew(digits):
    """Its optimizer has other tensors than those that were recorded."""
    one = trainer(digits)
    one.run = recorded = Graphed(one.work, CPU)
    one.restore(one.state())
    assert one.run is not recorded
    assert all(group["lr"] is one.rate for group in one.optimizer.param_groups)


class Counter:
    """A function, and a recording of it that counts."""

    def __init__(self):
        self.calls = self.recordings = self.replays = 0

    def __call__(self):
        self.calls += 1
        return self.calls

    def record(self, function, stream):
        self.recordings += 1
        return self.replay

    def replay(self):
        self.replays += 1
        return "replayed"


def test_a_function_is_recorded_once_after_it_has_run():
    count = Counter()
    graphed = Graphed(count, CPU, record=count.record)
    results = [graphed() for _ in range(WARM_UP + 3)]
    assert results == [*range(1, WARM_UP + 1), *["replayed"] * 3]
    assert (count.calls, count.recordings, count.replays) == (WARM_UP, 1, 3)
    with watch(lambda name: contextlib.nullcontext()):
        assert graphed() == WARM_UP + 1
    assert graphed() == "replayed"


def test_what_cannot_be_recorded_runs_and_says_so_once():
    def record(function, stream):
        try:
            raise ValueError("operation not permitted\nwhen stream is capturing")
        finally:
            raise RuntimeError("capture was invalidated")

    said, count = [], Counter()
    graphed = Graphed(count, CPU, say=said.append, record=record)
    assert [graphed() for _ in range(WARM_UP + 3)] == list(range(1, WARM_UP + 4))
    sentence = "steps run without a CUDA graph, because recording one failed: ValueError: "
    assert said == [sentence + "operation not permitted when stream is capturing"]
