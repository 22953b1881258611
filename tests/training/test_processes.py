"""The same run on any number of processes, in any number of parts of a step, interrupted or not."""

import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from cdn.errors import CDNError, DataError, DivergedError
from cdn.processes import Processes, _agreed, joined
from cdn.training.muon_division import Division, shares
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer
from cdn_kernels.recording import Replayed
from tests.forked import in_processes
from tests.training import watched_steps as together
from tests.training.watched_steps import STEPS, take_steps

F64 = torch.float64
CASES = {
    "joint": dict(),
    "recorded": dict(fused=True, final_denoising_weight=2.0),
    "parts": dict(accumulate=2),
    "independent": dict(clean="independent", clean_share=0.7),
    "images to spare": dict(batch_size=2, clean_share=0.5),  # of three processes, one has none
    "all clean": dict(clean_share=1.0),
    "denoiser": dict(model="denoiser-small", clip=0.0),
    "batch norm": dict(model="resnet-small", flip=True, crop_size=6),
}


def distance(found, expected):
    """Return the largest relative distance of any weight, average or what an optimizer keeps."""
    pairs = [(found[part][name], value) for part in ("model", "average") for name, value in expected[part].items()]
    for one, other in zip(found["optimizer"], expected["optimizer"], strict=True):
        assert one["state"].keys() == other["state"].keys()
        pairs += [(one["state"][p][name], value) for p, kept in other["state"].items() for name, value in kept.items()]
    return max(float((a - b).double().norm() / b.double().norm().clamp(min=1e-6)) for a, b in pairs)


def assert_same_run(found, expected, tolerance):
    """Compare the states of all processes with that of one alone: to rounding, and among themselves to the last bit."""
    for state in found[1:]:
        for part in ("model", "average"):
            assert all(torch.equal(state[part][name], value) for name, value in found[0][part].items())
        assert torch.equal(state["rng"], found[0]["rng"]) and torch.equal(state["health"], found[0]["health"])
    assert torch.equal(found[0]["health"], expected["health"]) and found[0]["step"] == expected["step"]
    assert distance(found[0], expected) < tolerance
    for row, other in zip(found[0]["rows"], expected["rows"][-len(found[0]["rows"]) :]):
        assert row == pytest.approx(other, rel=max(tolerance, 1e-6), nan_ok=True)  # the accuracy is float32


def test_parts_of_a_step_are_the_same_step():
    expected = take_steps(dtype=F64)
    assert int(expected["health"][0]) == 1  # the step that is skipped
    for parts in (2, 5):
        assert_same_run([take_steps(options=dict(accumulate=parts), dtype=F64)], expected, 1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_matrices_are_shared_out_evenly(count):
    shapes = [(64, 576)] * 4 + [(128, 1152)] * 3 + [(512, 4608)] * 3 + [(10, 512)]
    found = shares([torch.empty(shape) for shape in shapes], count)
    assert len(found) == count and sorted(itertools.chain(*found)) == list(range(len(shapes)))
    largest = [sum(shapes[index][0] == 512 for index in indices) for indices in found]
    assert max(largest) - min(largest) <= 1


def take_all(processes, cases, dtype):
    return {name: take_steps(processes, options, dtype) for name, options in cases.items()}


@pytest.mark.processes
@pytest.mark.parametrize("count", [2, 3])
def test_processes_take_the_same_steps(count):
    if count == 3:
        cases = {name: CASES[name] for name in ("joint", "recorded", "parts", "images to spare")}
    else:
        cases = CASES
    found = in_processes(count, take_all, cases, F64)
    for name, options in cases.items():
        expected = take_steps(options=options, dtype=F64)
        assert int(expected["health"][0]) == (name not in ("batch norm", "images to spare", "denoiser")), name
        # Cross-entropy gives the maps of the head no gradient but its rounding, which Muon makes a step of.
        tolerance = 1e-6 if name == "all clean" else 1e-9
        assert_same_run([states[name] for states in found], expected, tolerance)
        assert found[0][name]["overlapped"] == (name != "recorded")


def take_large_steps(processes):
    """Take steps that are too large for a recording to gain, and are sent while they are computed."""
    with mock.patch.object(Replayed.__init__, "__defaults__", (1000,)):
        return take_steps(processes, CASES["recorded"], F64)


@pytest.mark.processes
def test_what_is_too_large_to_be_recorded_is_sent_on_the_way():
    found = in_processes(2, take_large_steps)
    assert all(state["overlapped"] for state in found)
    assert_same_run(found, take_steps(options=CASES["recorded"], dtype=F64), 1e-9)


def divide_or_not(processes):
    """Take the same steps with the work of Muon divided, and done by all."""
    found = []
    for divided in (True, False):

        def decide(division, matrices, divided=divided):
            division.divided = divided

        with mock.patch.object(Division, "_decide", decide):
            found.append(take_steps(processes, dict(), F64, until=8))
    return found


@pytest.mark.processes
def test_muon_divided_over_processes_takes_the_same_steps():
    expected = take_steps(dtype=F64, until=8)
    for states in zip(*in_processes(3, divide_or_not)):
        assert_same_run(states, expected, 1e-9)


@pytest.mark.processes
@pytest.mark.parametrize(
    "options, tolerance", [(dict(optimizer="adamw"), 1e-3), (dict(optimizer="adamw", precision="bf16"), 0.05)], ids=str
)
def test_in_lower_precision_they_take_nearly_the_same_steps(options, tolerance):
    expected = take_steps(options=options)
    found = in_processes(2, take_steps, options)
    for part in ("model", "average"):
        for name, value in expected[part].items():
            assert torch.equal(found[0][part][name], found[1][part][name])
            assert (found[0][part][name] - value).norm() <= tolerance * value.norm().clamp(min=1e-3), name


@pytest.mark.processes
def test_a_run_goes_on_in_another_number_of_processes():
    expected = take_steps(dtype=F64)
    (first, _) = in_processes(2, take_steps, dict(), F64, None, 9)
    assert first["step"] == 9
    assert_same_run(in_processes(3, take_steps, dict(), F64, first), expected, 1e-9)
    assert_same_run([take_steps(options=dict(accumulate=3), dtype=F64, state=first)], expected, 1e-9)


@pytest.mark.parametrize(
    "options, count, message",
    [
        (dict(objective="jem"), 2, "--objective jem trains in one process, which has all chains, and this is one of 2"),
        (dict(model="resnet-small", batch_size=2), 3, "needs an image for every process.* a batch of 2 for 3"),
    ],
)
def test_what_several_processes_cannot_train_is_refused(options, count, message):
    settings = Settings(width=8, steps=5, **(dict(batch_size=16) | options))
    with pytest.raises(CDNError, match=message):
        Trainer(settings, together.load_dataset("digits"), 5, together.CPU, processes=Processes(1, count))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(accumulate=0), r"--accumulate: expected 1\.\.16 \(the images of a step\), got 0"),
        (dict(accumulate=17), r"--accumulate: expected 1\.\.16 \(the images of a step\), got 17"),
        (dict(accumulate=2, model="resnet-small"), r"--accumulate 2: a resnet-small takes statistics over the whole"),
        (dict(accumulate=2, objective="jem"), "--accumulate 2: a joint energy model takes its steps whole"),
    ],
)
def test_parts_that_a_step_cannot_have_are_refused(options, message):
    with pytest.raises(CDNError, match=message):
        Settings(width=8, batch_size=16, steps=5, **options)


# How they meet


def count_anew(_):
    """Meet others whose agents of torchrun count the attempts in another way, and return how many are there."""
    os.environ["TORCHELASTIC_RESTART_COUNT"] = os.environ["RANK"]
    with joined(together.CPU, timedelta(seconds=60)) as processes:
        here = torch.ones(())
        processes.add(here)
    return int(here)


@pytest.mark.processes
def test_attempts_that_are_counted_differently_are_one():
    assert in_processes(3, count_anew, join=False) == [3, 3, 3]


@pytest.mark.parametrize("late", [0, 1, 2])
def test_processes_agree_on_a_word_that_no_former_attempt_had(late):
    store, patience = dist.HashStore(), timedelta(seconds=30)
    store.set("cdn/word", "former")
    for name in ("1", "2"):
        store.set(f"cdn/former/{name}", "gone")
    store.set("cdn/former/heard", "gone gone")
    with ThreadPoolExecutor(3) as pool:
        agree = lambda rank: pool.submit(_agreed, store, rank, 3, patience)
        begun = [agree(rank) for rank in range(3) if rank != late]
        time.sleep(0.3)
        words = {found.result() for found in [*begun, agree(late)]}
    assert len(words) == 1 and words != {"former"}


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_nobody_answers_gives_up(rank):
    store = dist.HashStore()
    store.set("cdn/word", "former")
    with pytest.raises(RuntimeError):
        _agreed(store, rank, 2, timedelta(seconds=1.2))


# What goes wrong with one of them


def fail_on(processes, rank, kind):
    """Return a sum, what a piece of work returned, and what another raised that failed on one process."""
    sums = torch.ones(())
    processes.add(sums)

    def work():
        if processes.rank == rank:
            raise kind("photo.jpg: expected an 8-bit image")
        return processes.rank

    first = processes.together(lambda: processes.rank)
    try:
        processes.together(work)
    except Exception as error:
        return float(sums), first, type(error), str(error)
    return None


@pytest.mark.processes
@pytest.mark.parametrize(
    "rank, kind, mine, others, text",
    [
        (0, DataError, DataError, DataError, "photo.jpg: expected an 8-bit image"),
        (1, DivergedError, DivergedError, DivergedError, "process 1: photo.jpg: expected an 8-bit image"),
        (1, KeyError, KeyError, CDNError, "process 1: KeyError: 'photo.jpg: expected an 8-bit image'"),
    ],
)
def test_what_one_raises_all_raise(rank, kind, mine, others, text):
    found = in_processes(2, fail_on, rank, kind)
    for process, (sums, first, raised, said) in enumerate(found):
        assert (sums, first) == (2.0, process)
        assert raised is (mine if process == rank else others) and (process == rank or said == text)
    assert found[0][3] == text or rank == 0 or kind is KeyError


def end_early(processes):
    if processes.rank == 1:
        return "gone"
    try:
        processes.any(False)
    except CDNError as error:
        return type(error).__name__, str(error)
    return None


@pytest.mark.processes
def test_the_end_of_one_is_told_to_the_others():
    (kind, text), gone = in_processes(2, end_early)
    assert gone == "gone" and kind == "LostError"
    assert text.startswith("another process of this run has ended, and this one with it; what was saved is intact")


def test_a_process_alone_exchanges_nothing():
    alone, values = Processes(), torch.arange(3.0)
    alone.add(values)
    assert torch.equal(values, torch.arange(3.0)) and alone.gather(5) == [5] and alone.of_first(lambda: 7) == 7
    assert alone.any(True) and not alone.any(False) and alone.together(lambda: 3) == 3
    with pytest.raises(KeyError):
        alone.together(lambda: {}["missing"])
    assert alone.share(5) == range(5) and STEPS == 20
