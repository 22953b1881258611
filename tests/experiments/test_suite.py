"""All experiments by one command: what it runs, what it skips, and what it says of failures."""
import shlex

import pytest

from cdn import train
from cdn.errors import CDNError
from cdn.experiments import suite
from cdn.training.settings import Settings
from cdn_kernels import Noise, sample_sigma


def rows(printed):
    """Return the outcomes of the stages in the table that ends the output."""
    table = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")][2:]
    return {cells[0].strip(): cells[-1].strip() for cells in table}


def test_the_plan_is_made_of_commands_that_exist(tmp_path, capsys):
    suite.main(["--data", "cifar10", "--data-dir", "data", "--budget", "gpu", "--photographs", "Kodak24", "--dry-run",
                "--out", str(tmp_path / "out")])
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    modules = [words[2] for words in commands]
    assert modules.count("cdn.train") == modules.count("cdn.evaluate") == 7 and len(set(modules)) == 12
    for words in commands:
        if words[2] == "cdn.train":
            options = vars(train.make_parser().parse_args(words[3:]))
            assert options["data"] == "cifar10" and options["epochs"] in (200, 50)
    assert not (tmp_path / "out").exists()
    # ResNets that have seen noise and ones that have not stand beside the joint model.
    for plain in [words for words in commands if words[2] in ("cdn.certify", "cdn.experiments.robustness")]:
        assert {f"{tmp_path}/out/resnet", f"{tmp_path}/out/resnet-clean"} < set(plain)
    protected = [words[words.index("--classifier") + 1:][0] for words in commands if words[2].endswith("protect")]
    assert protected == [f"{tmp_path}/out/resnet-clean", f"{tmp_path}/out/resnet"]


def test_one_resnet_has_never_seen_noise(tmp_path, capsys):
    suite.main(["--only", "train-resnet", "train-resnet-clean", "--dry-run", "--out", str(tmp_path)])
    settings = [Settings.from_dict(vars(train.make_parser().parse_args(shlex.split(line)[3:])))
                for line in capsys.readouterr().out.splitlines()]
    noisy, clean = (sample_sigma(100, Noise(0), chosen.levels) > 0 for chosen in settings)
    assert noisy.any() and not clean.any()


def test_it_goes_on_where_it_was_and_names_what_failed(tmp_path, capfd):
    options = ["--out", str(tmp_path), "--only", "train-joint", "evaluate-joint"]
    training = ["--training", "--width", "8", "--steps", "4", "--device", "cpu"]
    assert suite.main([*options, *training]) == 0
    assert rows(capfd.readouterr().out) == {"train-joint": "done", "evaluate-joint": "done"}
    assert "test accuracy" in (tmp_path / "logs" / "train-joint.log").read_text()
    assert suite.main([*options, "evaluate-jem"]) == 1
    assert rows(capfd.readouterr().out) == {"train-joint": "done before", "evaluate-joint": "done before",
                                            "evaluate-jem": suite.FAILED}
    # An interrupted training is gone on with.
    (tmp_path / "joint" / "curves.png").unlink()
    suite.main([*options, "--dry-run"])
    assert f"cdn.train --resume {tmp_path / 'joint'}" in capfd.readouterr().out


def test_an_unknown_stage(tmp_path):
    with pytest.raises(CDNError, match="--only: expected some of train-joint, .*, got 'jacobi'"):
        suite.main(["--out", str(tmp_path), "--only", "jacobi"])
