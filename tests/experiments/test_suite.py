"""All experiments by one command: what it runs, what it skips, and what it says of failures."""
import shlex

import pytest

from cdn import train
from cdn.errors import CDNError
from cdn.experiments import suite


def rows(printed):
    """Return the outcomes of the stages in the table that ends the output."""
    table = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")][2:]
    return {cells[0].strip(): cells[-1].strip() for cells in table}


def test_the_plan_is_made_of_commands_that_exist(tmp_path, capsys):
    suite.main(["--data", "cifar10", "--data-dir", "data", "--budget", "gpu", "--photographs", "Kodak24", "--dry-run",
                "--out", str(tmp_path / "out")])
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    modules = [words[2] for words in commands]
    assert modules.count("cdn.train") == modules.count("cdn.evaluate") == 6 and len(set(modules)) == 12
    for words in commands:
        if words[2] == "cdn.train":
            options = vars(train.make_parser().parse_args(words[3:]))
            assert options["data"] == "cifar10" and options["epochs"] in (200, 50)
    assert not (tmp_path / "out").exists()


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
