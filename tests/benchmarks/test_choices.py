"""What was measured on a GPU becomes the table that impl="auto" chooses by, and nothing that could be noise does."""

import json
import random
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from benchmarks import choices
from benchmarks.choices import MAPS, OWN, TORCH
from benchmarks.harness.paired import Settings
from benchmarks.passes import NAMES
from cdn_kernels import info
from cdn_kernels.backends import convolution_choice, cuda, dispatch, measured, triton
from cdn_kernels.backends.interface import CONV_FORWARD, CONV_INPUT, CONV_WEIGHT
from cdn_kernels.ops.common import resolve_untransformed

# Nothing here was measured: the file stands for one that the benchmarks write on a GPU.
GPU = "a GPU that a test made up"
CUDA = torch.device("cuda")
BF16, F32 = torch.bfloat16, torch.float32
NHWC = dict(memory_format=torch.channels_last)
ROUNDS = 25


def fabricated(relative, seed=0, rounds=ROUNDS):
    """Return seconds by implementation: so many times a round's own time, which drifts, and a spread of 10 %."""
    draw = random.Random(seed)
    base = [1e-3 * draw.uniform(1, 2) for _ in range(rounds)]
    return {name: [b * factor * draw.lognormvariate(0, 0.1) for b in base] for name, factor in relative.items()}


def passes(relative, rounds=ROUNDS, **facts):
    """Yield results of every pass; relative maps the beginning of a name to the times of the two backends."""
    for seed, name in enumerate(chain.from_iterable(NAMES.values())):
        for dtype in ("float32", "bf16"):
            times = next(times for start, times in relative.items() if name.startswith(start))
            yield dict(
                facts=dict(operation="pass", name=name, dtype=dtype, layout="channels last", backend="triton") | facts,
                seconds=fabricated(times, seed, rounds),
            )


def convolutions(relative, layer):
    for seed, (name, times) in enumerate(relative.items()):
        yield dict(
            facts=dict(operation="convolution", map=name, layer=layer, batch=512, dtype="bf16", backend="triton"),
            seconds=fabricated(times, seed),
        )


PASSES = {
    "gelu": {OWN: 1.3, "cuda": 1.0},
    "norm tangent": {OWN: 3.0, "cuda": 1.0},
    "norm": {OWN: 1.0, "cuda": 1.1},
    "pool mean": {OWN: 1.0, "cuda": 1.0},
    "pool spread": {OWN: 1.0, "cuda": 1.0},
    "pool": {OWN: 1.0, "cuda": 1.5},
    "add noise": {OWN: 1.0, "cuda": 1.0},
    "denoising": {OWN: 1.0},
}
STAGE_1, STAGE_2 = (64, 64, 32, 3, 1), (128, 128, 16, 3, 1)
FIRST = {key: {OWN: 1.5, TORCH: 1.0} for key in MAPS} | {"forward, GELU": {OWN: 1.2, TORCH: 1.0, "cuda": 0.5}}
SECOND = {key: {OWN: 1.0, TORCH: 1.0} for key in MAPS} | {"by the filters": {OWN: 0.7, TORCH: 1.0}}


def record(folder, results, device=GPU):
    """Write results as pytest-benchmark would, and return the file."""
    machine = dict(device=device, commit="0123456789ab")
    benchmarks = [
        dict(fullname=f"test {i}", extra_info=dict(result, machine=machine)) for i, result in enumerate(results)
    ]
    file = folder / "fabricated.json"
    file.write_text(
        json.dumps(dict(benchmarks=benchmarks, datetime="2000-01-01T00:00:00", machine_info=dict(cdn=machine)))
    )
    return str(file)


@pytest.fixture
def table(tmp_path, capsys):
    """The table that the command writes from a fabricated record."""
    file = record(tmp_path, [*passes(PASSES), *convolutions(FIRST, STAGE_1), *convolutions(SECOND, STAGE_2)])
    choices.main([file, "--out", str(tmp_path / "table.json")])
    assert f"table.json: {GPU}" in capsys.readouterr().out
    return json.loads((tmp_path / "table.json").read_text())


def test_what_differs_beyond_the_noise_is_chosen(table):
    entry = table[GPU]
    assert entry["date"].startswith("2000") and entry["machine"]["device"] == GPU
    fastest = {name: row["fastest"] for name, row in entry["passes"].items()}
    assert fastest == {
        f"{operation} {dtype}": backend
        for dtype in ("float32", "bfloat16")
        for operation, backend in (
            # The tangent of the norm gains more than its other passes lose.
            ("gelu", "cuda"),
            ("gelu_group_norm", "cuda"),
            ("channel_mean", None),
            ("energy", "triton"),
            ("sample_noise", None),
        )
    }
    median, low, high = entry["passes"]["gelu bfloat16"]["others"]["triton"]
    assert 1 < low < median < high and abs(median - 1.3) < 0.1
    assert {name for name, row in entry["convolutions"].items() if measured.is_faster(row)} == {
        "cuda forward_gelu bfloat16 64 64 3 1",
        "triton weight bfloat16 128 128 3 1",
    }
    assert {name: row["fastest"] for name, row in entry["layers"].items()} == {"bfloat16 64 64 3 1": "cuda"}


def test_equal_kernels_are_seldom_told_apart():
    """Intervals of 95 % would miss one in twenty, but those of a choice have to miss on the same side."""
    wrong = 0
    for seed in range(200):
        row = choices.comparison([fabricated({"triton": 1.0, "cuda": 1.0}, 1000 + seed)])
        wrong += row["fastest"] is not None
    assert wrong <= 0.08 * 200


def test_what_is_said_of_other_gpus_stays(tmp_path, monkeypatch, table):
    monkeypatch.setattr(measured, "TABLE", {"another GPU": {"date": "1999"}, GPU: {"date": "1999"}})
    choices.main([record(tmp_path, passes(PASSES)), "--out", str(tmp_path / "new.json")])
    new = json.loads((tmp_path / "new.json").read_text())
    assert new["another GPU"] == {"date": "1999"} and new[GPU]["passes"] == table[GPU]["passes"]


@pytest.mark.parametrize(
    "results",
    [[], list(passes(PASSES, rounds=5)), list(passes(PASSES, backend="cpu"))],
    ids=["nothing", "too few rounds", "a CPU"],
)
def test_what_shows_nothing_is_refused(tmp_path, results):
    with pytest.raises(SystemExit, match="expected cases of the kernels for GPUs, in 6 rounds or more"):
        choices.main([record(tmp_path, results), "--out", str(tmp_path / "table.json")])
    assert not (tmp_path / "table.json").exists()


# ------------------------------------------------------------------------------------------------------------
# What impl="auto" makes of it
# ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a name, which all backends could run on."""
    about = SimpleNamespace(name=GPU, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: about.name)
    for backend in ("triton", "cuda"):
        monkeypatch.setitem(dispatch._CAN_USE, backend, lambda device, dtype: None)
    monkeypatch.setattr(convolution_choice, "CHOICE", "measured")
    return about


def images(shape, dtype=BF16, **layout):
    """Return what dispatch looks at of a tensor on a GPU."""
    like = torch.empty(shape, device="meta").contiguous(**layout)
    return SimpleNamespace(device=CUDA, dtype=dtype, shape=like.shape, dim=like.dim, is_contiguous=like.is_contiguous)


def test_auto_takes_what_was_fastest(monkeypatch, gpu, table):
    def backends():
        x, flat = images((512, 64, 32, 32), **NHWC), images((8, 5))
        return [
            resolve_untransformed(operation, "auto", x)
            for operation in ("gelu", "gelu_group_norm", "channel_mean", "energy", "denoising_loss")
        ] + [resolve_untransformed("gelu", "auto", flat)]

    usual = ["triton"] * 6
    assert backends() == usual
    monkeypatch.setattr(measured, "TABLE", table)
    assert backends() == ["cuda", "cuda", "triton", "triton", "triton", "cuda"]
    # Never what was not measured: another layout, another dtype.
    assert resolve_untransformed("gelu_group_norm", "auto", images((8, 64, 32, 32))) == "triton"
    assert resolve_untransformed("gelu", "auto", images((8, 5), torch.float16)) == "triton"
    # Nor in the place of one that was named, nor one that cannot run.
    assert resolve_untransformed("gelu", "triton", images((8, 5))) == "triton"
    monkeypatch.setitem(dispatch._CAN_USE, "cuda", lambda device, dtype: "it was not built")
    assert backends() == usual
    monkeypatch.setitem(dispatch._CAN_USE, "cuda", lambda device, dtype: None)
    gpu.name = "another GPU"
    assert backends() == usual


def test_auto_takes_the_convolutions_that_were_fastest(monkeypatch, gpu, table):
    x = images((512, 64, 32, 32), **NHWC)
    shape, smaller = (x.shape, (64, 64, 3, 3)), ((8, 64, 32, 32), (64, 64, 3, 3))
    second = (512, 128, 16, 16), (128, 128, 3, 3)
    faster = lambda backend, kind, shape, activation=False: measured.convolution_is_faster(
        backend, kind, x, shape, 1, activation
    )
    assert measured.fastest_for_layer(CUDA, BF16, shape, 1) is None and not faster("cuda", CONV_FORWARD, shape, True)
    monkeypatch.setattr(measured, "TABLE", table)
    assert measured.fastest_for_layer(CUDA, BF16, shape, 1) == "cuda"
    assert measured.fastest_for_layer(CUDA, BF16, smaller, 1) is measured.fastest_for_layer(CUDA, F32, shape, 1) is None
    assert faster("cuda", CONV_FORWARD, shape, True) and not faster("cuda", CONV_FORWARD, smaller, True)
    assert not faster("cuda", CONV_FORWARD, shape) and not faster("triton", CONV_FORWARD, shape, True)
    assert faster("triton", CONV_WEIGHT, second) and not faster("triton", CONV_INPUT, second)


def test_a_network_runs_by_several_backends(monkeypatch, gpu, table):
    assert set(dispatch.fused_backends(CUDA).values()) == {"triton"}
    assert set(dispatch.fused_backends(CUDA, "cuda").values()) == {"cuda"}
    monkeypatch.setattr(measured, "TABLE", table)
    found = dispatch.fused_backends(CUDA)
    assert {operation for operation in found if found[operation] == "cuda"} == {"gelu", "gelu_group_norm"}
    monkeypatch.setitem(dispatch._CAN_USE, "triton", lambda device, dtype: "it is not installed")
    with pytest.raises(RuntimeError, match="it is not installed"):
        dispatch.fused_backends(CUDA)


def test_backends_are_compared_on_a_gpu(monkeypatch, gpu):
    of = lambda device: Settings(device=device, rounds=None, seconds=1.0, smoke=False, full=False)
    assert of("cuda").library == "triton" and of("cuda").others == ["cuda"] and of("cpu").others == []
    monkeypatch.setitem(dispatch._CAN_USE, "cuda", lambda device, dtype: "it was not built")
    assert of("cuda").others == []


def test_information_says_what_auto_means(monkeypatch, gpu, table, capsys):
    monkeypatch.setattr(triton, "can_use_triton", lambda *_: None)
    monkeypatch.setattr(cuda, "can_use_cuda", lambda *_: "it was not built")

    def printed():
        info.main()
        return capsys.readouterr().out

    text = printed()
    assert f"nothing was measured on {GPU}, so that it means the triton kernels, and torch's convolutions" in text
    assert "our own were not measured on this device" in text
    monkeypatch.setattr(measured, "TABLE", table)
    text = printed()
    assert f"measured on {GPU} on 2000-01-01: " in text and "gelu bfloat16: cuda" in text
    assert "our own in 1 cases that were measured to be faster here" in text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measured.describe() == f"measured on {GPU}"
    monkeypatch.setattr(measured, "TABLE", {})
    assert "nothing was measured: on any GPU it means the triton kernels" in measured.describe()


def test_the_table_that_ships_was_measured():
    assert json.loads(measured.FILE.read_text()) == measured.TABLE
    for name, entry in measured.TABLE.items():
        assert entry["machine"]["device"] == name != GPU and entry["machine"]["commit"]
        assert {"date", "machine", "passes", "layers", "convolutions"} == entry.keys()
