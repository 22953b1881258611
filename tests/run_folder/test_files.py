"""Run folders on file systems without links, on full disks and read-only ones, and after writers that were killed."""

import ast
import errno
import os
import stat
import time
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import cdn
from cdn.errors import CDNError
from cdn.files import append, make_folder, require_writable, write_atomically
from cdn.images.image_files import write_image
from cdn.pictures.style import save
from cdn.run_folder.config import RunConfig, write_config
from cdn.run_folder.journal import Journal
from cdn.run_folder.names import PREVIOUS, STATE
from cdn.run_folder.state import load_state, save_state
from tests.faults import contents, failing, full_disk, read_only

ROOT = Path(cdn.__file__).parents[1]


@pytest.fixture
def no_links(monkeypatch):
    """exFAT, and some network folders."""
    monkeypatch.setattr(os, "link", failing(os.link, errno.EPERM))


def test_a_second_checkpoint_needs_no_links(tmp_path, no_links):
    for step in (1, 2, 3):
        save_state(tmp_path, dict(step=step))
    assert load_state(tmp_path)["step"] == 3
    assert torch.load(tmp_path / PREVIOUS, weights_only=True)["step"] == 2
    assert set(contents(tmp_path)) == {Path(STATE), Path(PREVIOUS)}


@pytest.mark.parametrize("name", ["open", "fsync"])
def test_folders_that_cannot_be_synchronized(tmp_path, monkeypatch, name):
    """Windows opens no folders, and network folders may not be synchronized; the file is there all the same."""
    is_folder = lambda what, *_: stat.S_ISDIR(os.fstat(what).st_mode) if name == "fsync" else os.path.isdir(what)
    monkeypatch.setattr(os, name, failing(getattr(os, name), errno.EACCES, is_folder))
    write_atomically(tmp_path / "file", b"new")
    assert contents(tmp_path) == {Path("file"): b"new"}


WRITERS = {
    "write_atomically": lambda folder: write_atomically(folder / "written", b"new"),
    "append": lambda folder: append(folder / "written", b"new"),
    "journal": lambda folder: Journal(folder / "written").append(dict(new=1)),
    "config": lambda folder: write_config(folder, RunConfig(model=dict(kind="new"))),
    "model": lambda folder: cdn.save_model(folder / "written", cdn.ResNet(2, 1, width=8, blocks=(1,))),
    "image": lambda folder: write_image(folder / "written.png", torch.ones(1, 1, 4, 4)),
    "figure": lambda folder: save(Figure(), folder / "written.png"),
    "metrics": lambda folder: Journal(folder / "metrics.jsonl", 0).append(dict(kind="train")),
    "state": lambda folder: save_state(folder, dict(step=1)),
}
NAMES = dict(config="config.json", image="written.png", figure="written.png", metrics="metrics.jsonl", state=STATE)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_with_the_name_of_the_file_and_keeps_what_was_there(tmp_path, writer):
    path = tmp_path / NAMES.get(writer, "written")
    path.write_bytes(b"" if writer in ("journal", "metrics") else b"old")
    before = contents(tmp_path)
    with full_disk(), pytest.raises(CDNError, match=f"{path.name}: .*intact") as error:
        WRITERS[writer](tmp_path)
    assert str(path) in str(error.value)
    after = contents(tmp_path)
    after.pop(Path(PREVIOUS), None)  # which is a link to the state
    assert after == before


def test_a_full_disk_without_links_keeps_both_states(tmp_path, no_links):
    for step in (1, 2):
        save_state(tmp_path, dict(step=step))
    before = contents(tmp_path)
    with full_disk(), pytest.raises(CDNError, match=f"could not write .*{PREVIOUS}"):
        save_state(tmp_path, dict(step=3))
    assert contents(tmp_path) == before


def test_rows_that_cannot_be_synchronized_name_their_file(tmp_path, monkeypatch):
    metrics = Journal(tmp_path / "metrics.jsonl", 0)
    monkeypatch.setattr(os, "fsync", failing(os.fsync, errno.ENOSPC))
    with pytest.raises(CDNError, match="metrics.jsonl: No space left"):
        metrics.sync()


def test_half_a_row_is_taken_back(tmp_path, monkeypatch):
    """A disk takes what it has room for, and says only then that it is full."""
    (tmp_path / "rows").write_bytes(b"1\n")
    opened = open

    def narrow(*arguments, **options):
        file = opened(*arguments, **options)
        room = iter([3])

        class Narrow:
            tell, truncate = file.tell, file.truncate

            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, data):
                count = next(room, None)
                if count is None:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return file.write(data[:count])

        return Narrow()

    monkeypatch.setattr("builtins.open", narrow)
    with pytest.raises(CDNError, match="rows: No space left"):
        append(tmp_path / "rows", b"a long row\n")
    monkeypatch.undo()
    assert (tmp_path / "rows").read_bytes() == b"1\n"


def test_what_killed_writers_left_goes_with_the_next_of_the_file(tmp_path):
    old, fresh, other = (tmp_path / name for name in (".file.123.tmp", ".file.124.tmp", ".file2.123.tmp"))
    for path in (old, fresh, other):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * 3600))
    write_atomically(tmp_path / "file", b"new")
    assert set(contents(tmp_path)) == {Path("file"), Path(fresh.name), Path(other.name)}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_only_files_are_replaced(tmp_path):
    """Root could put a file in the place of /dev/null."""
    os.mkfifo(tmp_path / "written")
    with pytest.raises(CDNError, match="written: expected a file to write, got a device or pipe"):
        write_atomically(tmp_path / "written", b"new")
    assert stat.S_ISFIFO((tmp_path / "written").stat().st_mode) and len(list(tmp_path.iterdir())) == 1


def test_a_stop_in_the_middle_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "check", [lambda folder: make_folder(folder), lambda folder: require_writable(folder / "file")]
)
def test_folders_that_take_no_files_are_found_at_once(tmp_path, check):
    with read_only(tmp_path), pytest.raises(CDNError, match="cannot be written: Permission denied"):
        check(tmp_path)
    with full_disk(), pytest.raises(CDNError, match="cannot be written: File too large"):
        check(tmp_path)
    check(tmp_path)
    assert contents(tmp_path) == {}


# What writes files by itself, and why it may.
OWN = {
    "cdn/files.py": "the one place",
    "cdn/cli/process.py": "the log of another command, which is written while it runs",
    "cdn/run_folder/lock.py": "a lock is no content",
    "cdn/run_folder/journal.py": "cuts off half a row, and waits for rows",
    "cdn/data/cifar10_download.py": "in a temporary folder, renamed as a whole",
    "cdn/commands/train.py": "a folder with a name of its own",
}
WRITING = {"write_text", "write_bytes", "mkdir", "makedirs", "link", "replace", "rename", "truncate", "save_file"}


def writes(call):
    """Say whether a call may write a file: by its name, or opening one to write."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    words = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
    if "O_CREAT" in ast.unparse(call):
        return True
    if name == "open":
        return any(isinstance(word, str) and set("wax+") & set(word) and len(word) < 4 for word in words)
    if name == "replace":  # that of os, not of strings and dataclasses
        return isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "os"
    return name in WRITING


def test_nothing_writes_files_in_a_way_of_its_own():
    found = set()
    for path in (*ROOT.glob("cdn/**/*.py"), *ROOT.glob("cdn_kernels/*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(map(writes, calls)):
            found.add(path.relative_to(ROOT).as_posix())
    assert found == set(OWN)
