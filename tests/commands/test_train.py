"""The training command: options, errors, profile, and what it learns."""

import json
import re

import pytest
import torch

from cdn.commands import train as command
from cdn.errors import CDNError, DataError
from cdn.training.recipe import learning_rate
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer
from cdn_kernels.backends import cpu
from tests.runs import TINY, weights


def run(*arguments):
    return command.main([*TINY.split(), *map(str, arguments)])


def last_row(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as exit:
        command.main(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for name in Settings.__dataclass_fields__:
        option = name.replace("denoising_weight", "lambda").replace("_", "-")
        assert f"--{option}" in text


@pytest.mark.parametrize(
    "options",
    [
        ["--objective", "denoising"],
        ["--objective", "classification", "--precision", "bf16"],
        ["--homogeneous"],
        ["--head", "linear", "--norm", "plain"],
        ["--head", "quadratic", "--sigma-law", "uniform"],
        ["--sigma-law", "fixed", "--sigma-high", "0.2", "--clean-share", "0.5"],
        ["--precision", "bf16", "--lambda", "1", "--final-lambda", "0.1", "--label-smoothing", "0.1", "--clip", "0"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("blank_pictures")
def test_every_kind_of_run_finishes(tmp_path, options):
    assert run("--out", tmp_path / "run", "--train-images", 48, *options) is None
    last = last_row(tmp_path / "run")
    assert last["kind"] == "evaluation"
    assert (last["accuracy"] is None) == ("denoising" in options)
    assert (last["psnr_50"] is None) == ("classification" in options)


def test_baselines_finish(plain_run, denoiser_run):
    for last in map(last_row, (plain_run, denoiser_run)):
        assert last["kind"] == "evaluation" and (last["accuracy"] is None) != (last["psnr_50"] is None)
    assert last["accuracy"] is None


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "resnet-small", "--objective", "joint"], "only be trained with --objective classification"),
        (["--sigma-low", "2"], "0 < low <= high"),
        (["--epochs", "3"], "epochs or steps, not both"),
        (["--data", "cifar10"], "data"),
        (["--width", "12"], "multiple of 8"),
        (["--impl", "cpu", "--no-fused"], "--impl cpu chooses among the fused kernels, which --no-fused does without"),
        (["--device", "cpu", "--impl", "triton"], "--fused: "),
        (["--device", "cpu", "--fused", "--impl", "triton"], "--fused: "),
        (["--resume"], "name the run folder"),
        (["--device", "tpu:7"], "device 'tpu:7'"),
    ],
)
def test_bad_options_get_one_sentence(tmp_path, options, message):
    arguments = options if "--resume" in options else ["--out", tmp_path / "run", *options]
    with pytest.raises(CDNError, match=message) as error:
        run(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [["--lambda", "-1"], ["--clean-share", "2"], ["--steps", "0"], ["--lr", "x"]])
def test_values_out_of_range_are_usage_errors(options, capsys):
    with pytest.raises(SystemExit) as exit:
        run(*options)
    assert exit.value.code == 2
    assert "expected" in capsys.readouterr().err or options[0] == "--lr"


def test_batch_larger_than_the_data(tmp_path):
    with pytest.raises(DataError, match="batch_size"):
        command.main(["--batch-size", "100000", "--steps", "2", "--out", str(tmp_path / "run"), "--device", "cpu"])


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_on_some_images_sees_no_others(tmp_path, monkeypatch):
    seen = []
    prepare = Trainer.prepare  # of every step, also of those that are replayed
    monkeypatch.setattr(Trainer, "prepare", lambda self: prepare(self) or seen.append(self.batch()))
    run("--out", tmp_path / "run", "--train-images", 40, "--crop-padding", 0, "--seed", 3)
    assert sum(len(x) for x, _ in seen) == 8 * 16
    # The last 8 of 40 images that make no batch of 16 are others in each of the four epochs.
    assert 32 < len(torch.cat([x for x, _ in seen]).unique(dim=0)) <= 40
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["train_images"] == config["training"]["train_images"] == 40


def test_more_images_than_there_are(tmp_path):
    with pytest.raises(DataError, match=r"train_images: expected 1\.\.1437 .* got 2000"):
        run("--out", tmp_path / "run", "--train-images", 2000)


@pytest.mark.usefixtures("blank_pictures")
def test_profile_reports_phases_and_changes_nothing(joint_run, tmp_path, capsys):
    run("--out", tmp_path / "profiled", "--profile")
    assert re.search(r"^peak memory of the process: [\d,]+ MiB$", capsys.readouterr().out, re.MULTILINE)
    rows = {r["phase"]: r for r in json.loads((tmp_path / "profiled" / "profile.json").read_text())["phases"]}
    assert {"data", "noise", "forward", "score", "backward", "optimizer", "step"} <= set(rows)
    assert rows["backward"]["bytes"] > rows["forward"]["bytes"] > 0
    profiled = weights(tmp_path / "profiled")
    assert all(torch.equal(value, profiled[name]) for name, value in weights(joint_run).items())


def recorded(folder):
    return json.loads((folder / "config.json").read_text())["training"]


@pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
@pytest.mark.usefixtures("blank_pictures")
def test_the_kernels_run_by_default_and_draw_the_same_noise(joint_run, tmp_path, capsys):
    assert recorded(joint_run)["fused"] is True
    run("--out", tmp_path / "plain", "--no-fused")
    assert "kernels: plain PyTorch\n" in capsys.readouterr().out and recorded(tmp_path / "plain")["fused"] is False
    plain = weights(tmp_path / "plain")
    for name, value in weights(joint_run).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-2, atol=1e-3)
    for options in (["--fused"], ["--impl", "cpu"]):
        run("--out", tmp_path / options[-1], *options)
        assert re.search(r"^kernels: cpu \((portable|AVX2|AVX-512( bf16)?)\)$", capsys.readouterr().out, re.MULTILINE)
        mine = weights(tmp_path / options[-1])
        assert all(torch.equal(value, mine[name]) for name, value in weights(joint_run).items())


@pytest.mark.usefixtures("blank_pictures")
def test_where_the_kernels_cannot_run_plain_pytorch_does(tmp_path, monkeypatch, capsys):
    def missing(*arguments):
        raise RuntimeError("the CPU library was not built")

    monkeypatch.setattr("cdn.training.settings.fused_backends", missing)
    folder = tmp_path / "run"
    assert run("--out", folder) is None
    assert "kernels: plain PyTorch, because the CPU library was not built\n" in capsys.readouterr().out
    assert recorded(folder)["fused"] is False
    with pytest.raises(CDNError, match="--fused: the CPU library was not built"):
        run("--out", tmp_path / "other", "--fused")
    monkeypatch.undo()
    command.main(["--resume", str(folder)])  # what was decided holds
    assert "kernels: plain PyTorch\n" in capsys.readouterr().out


def test_kernels_of_several_backends_are_listed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    backends = dict(gelu="triton", conv2d="cuda", energy="triton")
    text = command.kernels_text(backends, torch.device("cuda"), None)
    assert text == "triton for gelu, energy; cuda for conv2d (a GPU)"


def test_schedule_warms_up_and_ends_at_zero():
    rates = [learning_rate(step, 1000, 2.0, 100) for step in range(1001)]
    assert rates[0] == pytest.approx(0.02) and max(rates) == 2.0 and rates[1000] == pytest.approx(0)
    assert rates[:100] == sorted(rates[:100]) and rates[100:] == sorted(rates[100:], reverse=True)


@pytest.mark.slow
def test_the_default_run_learns_both_tasks(tmp_path):
    """The run of the README reaches the figures that the README states."""
    command.main(["--out", str(tmp_path / "run"), "--device", "cpu"])
    last = last_row(tmp_path / "run")
    assert last["accuracy"] >= 0.98
    assert last["denoising_loss"] < 0.45
    assert last["psnr_50"] - last["psnr_noisy_50"] >= 5
