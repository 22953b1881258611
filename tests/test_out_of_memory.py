"""Whoever runs out of memory, the command ends in one sentence."""

import ast
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import cdn
from cdn.cli.process import run_command

PACKAGE = Path(cdn.__file__).parent


@pytest.fixture(autouse=True)
def _warnings_as_before(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # which commands change for good


def nothing_left():
    raise MemoryError


def torch_allocates():
    torch.empty(1 << 50, dtype=torch.uint8)


def numpy_allocates():
    np.empty(1 << 50, dtype=np.uint8)


def raises(error):
    def main():
        raise error

    return main


CASES = {
    "torch": (torch_allocates, "1125899906842624 bytes"),
    "NumPy": (numpy_allocates, "Unable to allocate"),
    "Python": (nothing_left, "no more is known"),
    "torch on Windows": (
        raises(RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you")),
        "not enough memory: you",
    ),
    "C++": (raises(MemoryError("std::bad_alloc")), "std::bad_alloc"),
    "a GPU": (raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore")), "9 GiB.): try"),
    "the driver": (raises(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be")), "CUDA error"),
}


@pytest.mark.parametrize("who", CASES)
def test_it_ends_in_a_sentence(who, capsys):
    main, cause = CASES[who]
    with pytest.raises(SystemExit) as status:
        run_command(main)
    printed = capsys.readouterr().err
    assert status.value.code == 1
    assert printed.startswith("error: out of memory (") and cause in printed and printed.count("\n") == 1
    assert "smaller" in printed and "enforce fail" not in printed


def test_other_errors_keep_their_traceback():
    """A RuntimeError about anything else is a bug, which a sentence would hide."""
    with pytest.raises(RuntimeError, match="shapes"):
        run_command(raises(RuntimeError("shapes do not fit")))


def test_every_command_goes_this_way():
    commands = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
                commands[path.relative_to(PACKAGE).as_posix()] = ast.unparse(node.body)
    assert {"train.py", "denoise.py", "classify.py", "evaluate.py", "certify.py"} < set(commands)
    ways = {"", ", to_the_end=False", ", divided=True"}
    assert set(commands.values()) == {f"run_command(main{options})" for options in ways}
