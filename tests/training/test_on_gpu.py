"""Training steps on a GPU: none waits for the device, and a CUDA graph replays what the steps would have done."""

import pytest
import torch

from cdn.data import Augmentation, Batches, load_dataset
from cdn.data.batches import AHEAD
from cdn.training.recordings import Recordings
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer
from cdn_kernels import Noise, standard_normal
from cdn_kernels.backends.cuda import can_use_cuda
from cdn_kernels.backends.triton import can_use_triton
from cdn_kernels.graphs import WARM_UP, Graphed
from tests.pretend_gpu.marks import PRETENDED, command

CUDA = torch.device("cuda")
REASON = can_use_triton(CUDA, torch.float32)
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"{REASON}; on one that is pretended: {command(__file__)}")
STEPS = WARM_UP + 5
KINDS = {
    "adamw": {},
    "muon bf16": dict(optimizer="muon", precision="bf16", clean_share=0.5),
    "clean images, 9 or 10": dict(clean_share=0.3),
    "moving lambda": dict(final_denoising_weight=0.5, flip=True),
    "classification": dict(objective="classification"),
    "denoiser": dict(model="denoiser-small"),
    "resnet": dict(model="resnet-small"),
}
NO_CUDA = can_use_cuda(CUDA, torch.float32)
kinds = pytest.mark.parametrize(
    "options",
    [
        *(pytest.param(options, id=name) for name, options in KINDS.items()),
        pytest.param(
            dict(impl="cuda", precision="bf16"),
            id="cuda",
            marks=pytest.mark.skipif(NO_CUDA is not None, reason=str(NO_CUDA)),
        ),
    ],
)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def trainer(digits, **options):
    said = []
    one = Trainer(Settings(width=16, batch_size=32, steps=50, fused=True, **options), digits, 50, CUDA, said.append)
    return one, said


@kinds
def test_no_step_waits_for_the_device(digits, options):
    one, _ = trainer(digits, **options)
    one.run = one.work
    one.advance()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        one.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@kinds
def test_a_graph_does_what_the_steps_do(digits, options):
    recorded, said = trainer(digits, **options)
    plain, _ = trainer(digits, **options)
    plain.run = plain.work
    assert isinstance(recorded.run, Recordings)
    while not recorded.step or recorded.step < STEPS * len(recorded.run.by_kind):
        expected, found = plain.advance(), recorded.advance()
        assert not said
        for name in expected:  # weight gradients of cuDNN may add in another order, and an image change its class
            torch.testing.assert_close(found[name], expected[name], rtol=2e-2, atol=0.07)
    assert len(recorded.run.by_kind) == (2 if options.get("clean_share") == 0.3 else 1)
    for name in ("model", "average"):
        for a, b in zip(getattr(recorded, name).parameters(), getattr(plain, name).parameters()):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * float(b.detach().abs().max()))


def test_every_replay_skips_a_step_that_is_not_finite(digits):
    one, said = trainer(digits)
    for _ in range(WARM_UP + 2):
        one.advance()
    before = [p.detach().clone() for p in one.model.parameters()]
    one.model.mean.fill_(float("nan"))
    one.advance()
    assert one.health.check() == 1 and not said
    assert all(torch.equal(a, b) for a, b in zip(before, one.model.parameters()))
    one.model.mean.zero_()
    one.advance()
    assert one.health.check() == 1
    assert not all(torch.equal(a, b) for a, b in zip(before, one.model.parameters()))


def test_batches_are_those_of_the_cpu(digits):
    augmentation = Augmentation(digits.shape, crop_padding=2, flip=True, crop_size=7)
    here, there = (Batches(digits.train, 32, 3, device, augmentation) for device in (torch.device("cpu"), CUDA))
    for step in (0, 1, AHEAD, AHEAD + 1):
        for batches in (here, there):
            batches.seek(step)
        for mine, expected in zip(there.read(), here.read()):
            assert mine.is_cuda and torch.equal(mine.cpu(), expected)


def test_a_replay_draws_the_noise_of_its_step():
    offset, drawn = torch.zeros((), dtype=torch.int64, device=CUDA), torch.zeros(3, 1000, device=CUDA)

    def draw():
        drawn.copy_(standard_normal(drawn.shape, Noise(5, offset), device=CUDA, impl="triton"))
        return drawn

    said = []
    graphed = Graphed(draw, CUDA, say=said.append)
    for step in range(WARM_UP + 3):
        offset.fill_(step)
        expected = standard_normal(drawn.shape, Noise(5, step), device=CUDA, impl="triton")
        assert torch.equal(graphed(), expected) and not said


def test_a_state_on_a_gpu_is_taken_up(digits, tmp_path):
    one, _ = trainer(digits)
    for _ in range(WARM_UP + 2):
        one.advance()
    torch.save(one.state(), tmp_path / "state.pt")
    other, said = trainer(digits)
    other.restore(torch.load(tmp_path / "state.pt", map_location=CUDA, weights_only=True))
    for _ in range(WARM_UP + 2):
        expected, found = one.advance(), other.advance()
        torch.testing.assert_close(found["loss"], expected["loss"], rtol=2e-2, atol=2e-2)
    assert not said


@pytest.mark.skipif(PRETENDED, reason="the pretended GPU takes a function for its recording")
def test_what_cannot_be_recorded_still_runs():
    said, x = [], torch.ones(3, device=CUDA)
    graphed = Graphed(lambda: x.sum().item(), CUDA, say=said.append)
    assert [graphed() for _ in range(WARM_UP + 2)] == [3.0] * (WARM_UP + 2)
    assert len(said) == 1 and "without a CUDA graph" in said[0]
    assert float((x + 1).sum()) == 6 and torch.cuda.current_stream() == torch.cuda.default_stream()
