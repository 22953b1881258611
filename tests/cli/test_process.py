"""What commands print: to readers that have left, to full disks, in letters that a terminal lacks, to be run again."""

import ast
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cdn
from cdn.cli import process as cli
from cdn.data.cifar10 import load_cifar10
from cdn.errors import CDNError, DataError
from cdn.run_folder.names import PREVIOUS, STATE
from cdn.run_folder.state import load_state, save_state
from cdn_kernels import machine
from cdn_kernels.console import run_steadily
from tests.faults import closed_pipe

ROOT = Path(cdn.__file__).parents[1]


# streams


def full():
    """A stream to a disk that is full."""
    return open("/dev/full", "w")


@pytest.mark.parametrize(
    "stream, to_the_end, status, told",
    [
        (closed_pipe, True, 0, ""),
        (closed_pipe, False, 1, ""),
        (full, True, 1, "error: the output could not be written: No space left on device\n"),
        (full, False, 1, "error: the output could not be written: No space left on device\n"),
    ],
)
@pytest.mark.parametrize("flush", [True, False])
def test_output_that_no_one_takes(monkeypatch, capsys, stream, to_the_end, status, told, flush):
    steps = []

    def main():
        for step in range(3):
            print(f"step {step}", flush=flush)
            steps.append(step)

    out = stream()
    monkeypatch.setattr(sys, "stdout", out)
    assert run_steadily(main, to_the_end=to_the_end) == status
    assert sys.stdout is out
    out.close()  # as the interpreter does at its end: nothing is left to be written
    monkeypatch.undo()
    assert len(steps) == (0 if flush and not to_the_end else 3)
    assert capsys.readouterr().err == told


def test_errors_that_no_one_reads(monkeypatch):
    monkeypatch.setattr(sys, "stderr", closed_pipe())
    for _ in range(2):
        assert run_steadily(lambda: print("a", file=sys.stderr, flush=True) or 3) == 3


def test_a_command_that_fails_without_a_reader_fails_with_its_own_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", closed_pipe())

    def main():
        print("begun", flush=True)
        raise CDNError("a sentence\nof two lines")

    with pytest.raises(SystemExit) as stop:
        cli.run_command(main)
    assert stop.value.code == 1 and capsys.readouterr().err == "error: a sentence of two lines\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_letters_that_a_terminal_lacks_are_escaped(monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    name = "\u732b \xe9 " + os.fsdecode(b"caf\xe9")
    assert run_steadily(lambda: print(name)) == 0
    assert out.buffer.getvalue() == (name + "\n").encode(encoding, "backslashreplace")


def test_logs_of_commands_take_any_letter(tmp_path, capsys):
    code = "import sys; sys.stdout.buffer.write(b'caf\\xe9 \\xe7\\x8c\\xab\\n')"
    assert cli.run_logged([sys.executable, "-c", code], tmp_path / "log", "> ") == 0
    assert (tmp_path / "log").read_text().startswith("caf\\xe9 ")
    assert capsys.readouterr().out.startswith("> caf\\xe9 ")
    with pytest.raises(CDNError, match=r"could not write .*none/log: No such file"):
        cli.run_logged([sys.executable, "-c", code], tmp_path / "none" / "log")
    assert cli.run_logged([sys.executable, "-c", "print(1)"], Path("/dev/null")) == 0
    with pytest.raises(CDNError, match="could not write /dev/full: No space left"):
        cli.run_logged([sys.executable, "-c", "print(1)"], Path("/dev/full"))


def start(*words, **options):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return subprocess.Popen([sys.executable, "-m", *map(str, words)], **pipes | options)


def test_a_training_goes_on_without_readers(tmp_path):
    """As in ``python -m cdn.train 2>&1 | head -1``."""
    tiny = "--model resnet-small --width 8 --steps 4 --batch-size 16 --evaluations 2 --log-every 1 --device cpu"
    process = start("cdn.train", "--out", tmp_path / "run", *tiny.split(), stderr=subprocess.STDOUT)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(240) == 0
    assert load_state(tmp_path / "run")["step"] == 4 and (tmp_path / "run" / "curves.png").exists()


def test_a_command_that_only_prints_ends_with_its_reader():
    process = start("cdn_kernels.info")
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 1


# commands to run again


def test_printed_commands_can_be_pasted(tmp_path):
    folder = tmp_path / "a $HOME folder's"
    folder.mkdir()
    for step in (1, 2):
        save_state(folder, dict(step=step))
    (folder / STATE).write_bytes(b"torn")
    with pytest.raises(CDNError) as error:
        load_state(folder)
    assert shlex.split(str(error.value).partition("whole: ")[2]) == ["mv", str(folder / PREVIOUS), str(folder / STATE)]
    with pytest.raises(DataError) as error:
        load_cifar10(folder)
    assert shlex.split(str(error.value).partition("run: ")[2])[-2:] == ["-C", str(folder)]


def test_no_command_is_printed_unquoted():
    """Of texts with values in them, those that are commands up to a value have it quoted."""
    command = re.compile(r"(python -m [\w.]+( --?[\w-]+)*|\bmv|\btar -\w+|\bcd|with --resume) $")
    bare, seen = [], 0
    for path in [p for package in ("cdn", "cdn_kernels", "benchmarks") for p in (ROOT / package).glob("**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            for before, value in zip(node.values, node.values[1:]) if isinstance(node, ast.JoinedStr) else ():
                spoken = isinstance(before, ast.Constant) and command.search(str(before.value))
                if spoken and "shlex" not in ast.unparse(value):
                    bare.append(f"{path.relative_to(ROOT)}: {ast.unparse(node)}")
            seen += isinstance(node, ast.Attribute) and ast.unparse(node) in ("shlex.join", "shlex.quote")
    assert not bare, "use shlex.join"
    assert seen > 5


# the commit that reports name


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def repository(folder):
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q")
    (folder / "file").write_text("content")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def package(folder):
    (folder / "cdn_kernels").mkdir(parents=True)
    (folder / "cdn_kernels" / "machine.py").write_text("")
    return folder / "cdn_kernels" / "machine.py"


def test_reports_name_the_commit_of_the_checkout_alone(tmp_path, monkeypatch):
    file = package(tmp_path / "own")
    repository(tmp_path / "own")
    found = machine.commit_of(file)
    assert re.fullmatch("[0-9a-f]{12}", found)
    file.write_text("changed")
    assert machine.commit_of(file) == f"{found}-dirty"
    # Installed into an environment inside of someone's project, copied into its top, and with no repository around.
    around = repository(tmp_path / "project")
    assert machine.commit_of(package(around / "venv" / "lib" / "site-packages")) is None
    assert machine.commit_of(package(around)) is None
    assert machine.commit_of(package(tmp_path / "none")) is None
    # A hook of git tells its repository to all that it starts.
    monkeypatch.setenv("GIT_DIR", str(around / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(around))
    assert machine.commit_of(file) == f"{found}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit_of(file) is None
