"""All experiments by one command: what it runs, what it skips, and what it says of failures."""

import shlex
import sys

import pytest

from cdn.cli.training import training_parser
from cdn.errors import CDNError
from cdn.experiments import learning_curves, suite
from cdn.experiments.stages import BUDGETS, CURVE_SIZES
from cdn.training.settings import Settings
from cdn_kernels import Noise, sample_sigma
from tests.in_process import run_module


def rows(printed):
    """Return the outcomes of the stages in the table that ends the output."""
    _, _, last = printed.rpartition("| stage")
    table = [line.strip("| ").split(" | ") for line in last.splitlines() if line.startswith("|")][1:]
    return {cells[0].strip(): cells[-1].strip() for cells in table}


def test_the_plan_is_made_of_commands_that_exist(tmp_path, capsys):
    suite.main(
        [
            "--data",
            "cifar10",
            "--data-dir",
            "data",
            "--budget",
            "gpu",
            "--photographs",
            "Kodak24",
            "--patches",
            "photos",
            "--dry-run",
            "--out",
            str(tmp_path / "out"),
        ]
    )
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    modules = [words[2] for words in commands]
    assert modules.count("cdn.train") == 8 and modules.count("cdn.evaluate") == 7 and len(set(modules)) == 18
    trained = [vars(training_parser().parse_args(words[3:])) for words in commands if words[2] == "cdn.train"]
    assert [options["epochs"] for options in trained] == 8 * [200]
    assert [options["jem_steps"] for options in trained if options.get("objective") == "jem"] == [5]
    assert [options["data_dir"] for options in trained if options["data"] == "imagefolder"] == ["photos"]
    assert {words[3] for words in commands if words[2].endswith("photographs")} == {
        f"{tmp_path}/out/joint",
        f"{tmp_path}/out/patches",
    }
    assert not (tmp_path / "out").exists()
    # ResNets that have seen noise and ones that have not stand beside the joint model.
    for plain in [words for words in commands if words[2] in ("cdn.certify", "cdn.experiments.robustness")]:
        assert {f"{tmp_path}/out/resnet", f"{tmp_path}/out/resnet-clean"} < set(plain)
    protected = [words[words.index("--classifier") + 1 :][0] for words in commands if words[2].endswith("protect")]
    assert protected == [f"{tmp_path}/out/resnet-clean", f"{tmp_path}/out/resnet"]


def test_learning_curves_of_every_budget_can_be_parsed(tmp_path, capsys):
    for budget in BUDGETS:
        for data in CURVE_SIZES:
            suite.main(
                [
                    "--only",
                    "bounds",
                    "learning_curves",
                    "--data",
                    data,
                    "--budget",
                    budget,
                    "--dry-run",
                    "--out",
                    str(tmp_path),
                ]
            )
            bound, curve = map(shlex.split, capsys.readouterr().out.splitlines())
            assert bound[3:] == ["--out", f"{tmp_path}/bounds"]
            args, settings = learning_curves.parse(curve[3:])
            assert args.out == tmp_path / "learning_curves" and {chosen.data for chosen in settings.values()} == {data}
            assert len(settings) == 3 * 2 * len(args.sizes) and min(args.sizes) >= 64


def test_one_resnet_has_never_seen_noise(tmp_path, capsys):
    suite.main(["--only", "train-resnet", "train-resnet-clean", "--dry-run", "--out", str(tmp_path)])
    settings = [
        Settings.from_dict(vars(training_parser().parse_args(shlex.split(line)[3:])))
        for line in capsys.readouterr().out.splitlines()
    ]
    noisy, clean = (sample_sigma(100, Noise(0), chosen.levels) > 0 for chosen in settings)
    assert noisy.any() and not clean.any()


def run_here(command, log):
    """What :func:`cdn.cli.process.run_logged` does, without a process for every command."""
    assert command[:2] == [sys.executable, "-um"]
    status, out, err = run_module(*command[2:])
    print(out + err)
    log.write_text(out + err)
    return status


@pytest.mark.usefixtures("blank_pictures")
def test_it_goes_on_where_it_was_and_names_what_failed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(suite, "run_logged", run_here)
    options = ["--out", str(tmp_path), "--only", "train-joint", "evaluate-joint"]
    training = ["--training", "--width", "8", "--steps", "4", "--device", "cpu"]
    assert suite.main([*options, *training]) == 0
    assert rows(capsys.readouterr().out) == {"train-joint": "done", "evaluate-joint": "done"}
    assert "test accuracy" in (tmp_path / "logs" / "train-joint.log").read_text()
    assert suite.main([*options, "evaluate-jem"]) == 1
    assert rows(capsys.readouterr().out) == {
        "train-joint": "done before",
        "evaluate-joint": "done before",
        "evaluate-jem": suite.FAILED,
    }
    # An interrupted training is gone on with.
    (tmp_path / "joint" / "curves.png").unlink()
    suite.main([*options, "--dry-run"])
    assert f"cdn.train --resume {tmp_path / 'joint'}" in capsys.readouterr().out


def test_an_unknown_stage(tmp_path):
    with pytest.raises(CDNError, match="--only: expected some of train-joint, .*, got 'jacobi'"):
        suite.main(["--out", str(tmp_path), "--only", "jacobi"])
