"""Robustness of a trained run: the attacks against each other and against others' code, and the command."""

import json

import pytest
import torch

from cdn.errors import CDNError
from cdn.experiments import robustness
from cdn.methods.attacks import NORMS, Ball, attack, distance, sweep
from cdn.model.modes import evaluating
from cdn.run_folder.opened import open_run

# Where about half of the images withstand.
RADII = dict(linf=[0.04, 0.08, 0.12], l2=[0.3, 0.5, 0.7])


@pytest.fixture(scope="module")
def digits(digits_run):
    """The model, and images with their labels."""
    run = open_run(digits_run)
    images, labels = run.dataset.test.load(torch.arange(60))
    with evaluating(run.model, "float32"):
        yield run.model, images.float().div(255), labels


@pytest.mark.parametrize("norm", NORMS)
def test_automatic_steps_are_at_least_as_strong_as_constant_ones(norm, digits):
    run = lambda name: sweep(*digits, norm, RADII[norm], [name], steps=15, seed=1).robust_accuracy
    constant, automatic = run("pgd"), run("apgd-ce")
    assert all(a <= b for a, b in zip(automatic, constant))
    assert 0.2 < automatic[1] < 0.8


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_others_find_as_many(norm, loss, digits):
    others = pytest.importorskip("torchattacks")
    model, x, labels = digits
    radius = RADII[norm][1]
    theirs = others.APGD(model, norm=dict(linf="Linf", l2="L2")[norm], eps=radius, steps=30, loss=loss)
    images = theirs(x, labels).float()
    assert distance(norm, x, images).max() <= radius * (1 + 1e-5)
    ours = attack(model, x, labels, Ball(norm, radius), f"apgd-{loss}", steps=30).images
    accuracy = [float((model(y).argmax(1) == labels).double().mean()) for y in (images, ours)]
    assert accuracy[1] == pytest.approx(accuracy[0], abs=0.034), accuracy


def test_the_command_compares_runs(digits_run, plain_run, tmp_path, capsys):
    robustness.main(
        [
            str(digits_run),
            "--against",
            str(plain_run),
            "--out",
            str(tmp_path / "out"),
            "--limit",
            "30",
            "--steps",
            "6",
            "--radii-linf",
            "32",
            "8",
            "--radii-l2",
            "0.5",
            "--checks",
            "6",
            "--device",
            "cpu",
        ]
    )
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["results"]["runs"]) == ["digits", "plain"] and report["results"]["images"] == 30
    for name, run in report["results"]["runs"].items():
        assert run["linf"]["radii"] == [8, 32] and run["l2"]["radii"] == [0.5]
        curve = [run["linf"]["clean"], *run["linf"]["robust"]]
        assert curve == sorted(curve, reverse=True) and run["linf"]["clean"] == run["l2"]["clean"]
        assert len(run["linf"]["checks"]) == len(run["l2"]["checks"]) == 5
        assert f"| {name} " in printed
    assert printed.count("nothing withstands an unbounded attack") == 4
    first = report["results"]["runs"]["digits"]
    assert first["linf"]["clean"] > 0.9 > first["linf"]["robust"][1]
    images, labels = open_run(digits_run).dataset.test.load(torch.arange(30))
    again = sweep(
        open_run(digits_run).model,
        images.float() / 255,
        labels,
        "linf",
        [8 / 255, 32 / 255],
        ["apgd-ce", "apgd-dlr"],
        steps=6,
    )
    assert first["linf"]["robust"] == again.robust_accuracy
    assert (tmp_path / "out" / "picture.png").stat().st_size > 10_000


@pytest.mark.usefixtures("blank_pictures")
def test_options_reach_the_attack(digits_run, tmp_path, capsys):
    def robust(*options):
        robustness.main(
            [
                str(digits_run),
                "--out",
                str(tmp_path),
                "--limit",
                "30",
                "--steps",
                "4",
                "--norms",
                "linf",
                "--radii-linf",
                "24",
                "--checks",
                "0",
                "--device",
                "cpu",
                *options,
            ]
        )
        results = json.loads((tmp_path / "report.json").read_text())["results"]["runs"]["digits"]
        assert list(results) == ["linf"] and results["linf"]["checks"] == []
        return results["linf"]["robust"][0]

    weak = robust("--attack", "random-search")
    assert robust("--attack", "random-search", "pgd") < weak
    assert robust("--attack", "random-search", "--restarts", "3") <= weak
    assert robust("--attack", "pgd", "--targeted", "9") <= robust("--attack", "pgd", "--targeted", "1")
    assert "no sign of masked gradients" not in capsys.readouterr().out


def test_what_the_command_refuses(digits_run, denoiser_run, tmp_path, capsys):
    options = ["--out", str(tmp_path / "out"), "--limit", "5", "--device", "cpu"]
    with pytest.raises(CDNError, match="denoiser: expected a run that classifies, got a DirectDenoiser"):
        robustness.main([str(digits_run), "--against", str(denoiser_run), *options])
    with pytest.raises(CDNError, match="expected different runs, got one of them twice"):
        robustness.main([str(digits_run), "--against", str(digits_run), *options])
    with pytest.raises(CDNError, match="digits: targeted: expected 0 to 9 of the wrong classes, got 10"):
        robustness.main([str(digits_run), "--targeted", "10", *options])
    for option, value, message in [
        ("--attack", "fgsm", "invalid choice: 'fgsm'"),
        ("--norms", "l1", "invalid choice"),
        ("--radii-l2", "-1", "expected a number above 0"),
        ("--steps", "0", "at least 1"),
    ]:
        with pytest.raises(SystemExit):
            robustness.main([str(digits_run), option, value, *options])
        assert message in capsys.readouterr().err
