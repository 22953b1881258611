"""What every command shares: how it ends, and how one command runs another."""

import sys
from pathlib import Path

import pytest
import torch

from cdn.cli.process import run_command, run_logged
from cdn.errors import CDNError


def fail(error):
    raise error


@pytest.mark.parametrize(
    "main, status, said",
    [
        (lambda: None, 0, ""),
        (lambda: 130, 130, ""),
        (lambda: fail(CDNError("no such run")), 1, "error: no such run\n"),
        (lambda: Path("/none/file").read_text(), 1, "error: /none/file: No such file or directory\n"),
        (
            lambda: fail(torch.OutOfMemoryError("CUDA out of memory.\nTried to")),
            1,
            "error: out of memory (CUDA out of memory.): try a smaller batch or image\n",
        ),
        (lambda: fail(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
    ids=["done", "its own status", "refused", "no file", "no memory", "interrupted"],
)
def test_how_a_command_ends(main, status, said, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == status and capsys.readouterr() == ("", said)


def test_an_error_in_the_code_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)


def test_what_another_command_prints_is_shown_and_kept(tmp_path, capsys):
    code = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    assert run_logged([sys.executable, "-uc", code], tmp_path / "log", prefix="> ") == 3
    assert capsys.readouterr().out == "> one\n> two\n" and (tmp_path / "log").read_text() == "one\ntwo\n"
