"""One run, one training: what a second one is told, and when a lock ends."""

import contextlib
import errno
import fcntl
import os
import signal
import threading

import pytest

from cdn.commands import evaluate, train
from cdn.errors import CDNError
from cdn.run_folder.lock import locked
from cdn.run_folder.names import LOCK
from tests.faults import contents, failing, read_only
from tests.frozen import freeze

TAKEN = "is being trained by process .*: let it finish, or stop it first"


@pytest.fixture
def holder():
    """Return a function that lets another process hold a run, and returns its number; all of them end with the test."""
    started = []

    def start(run, child=False):
        ready, told = os.pipe()
        process = os.fork()
        if not process:  # from here on nothing of pytest may run
            try:
                with locked(run):
                    if child and os.fork():
                        signal.pause()
                    os.write(told, b"%8d" % os.getpid())
                    signal.pause()
            finally:
                os._exit(1)
        started.extend({process, int(os.read(ready, 8))})
        os.close(ready)
        os.close(told)
        return process

    yield start
    for process in started:
        kill(process)


def kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # that of a child of ours is not ours to wait for
        os.waitpid(process, 0)


def take(run):
    with locked(run):
        return True


def test_another_process_is_refused_and_told_which_and_a_kill_frees_the_run(tmp_path, holder):
    process = holder(tmp_path)
    with pytest.raises(CDNError, match=f"process {process} on ") as error:
        take(tmp_path)
    assert "\n" not in str(error.value)
    kill(process)
    assert take(tmp_path)


def test_children_inherit_no_lock(tmp_path, holder):
    process = holder(tmp_path, child=True)
    with pytest.raises(CDNError, match=TAKEN):
        take(tmp_path)
    kill(process)  # and its child, such as one that loads data, lives on
    assert take(tmp_path)


def test_a_process_holds_a_run_once(tmp_path):
    with locked(tmp_path):
        refused = []

        def second():
            with pytest.raises(CDNError, match=f"process {os.getpid()}, this one"):
                take(tmp_path)
            refused.append(True)

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert refused
        # The system forgets a lock of a process when any of its copies of the file is closed: it is still held.
        child = os.fork()
        if not child:
            try:
                take(tmp_path)
            except CDNError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert take(tmp_path)


def test_file_systems_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "lockf", failing(fcntl.lockf, errno.ENOLCK))
    assert take(tmp_path)


def test_a_training_is_refused_before_it_touches_the_run(tmp_path, holder):
    run = tmp_path / "run"
    run.mkdir()
    for path in (freeze.FOLDER / "0.1.0" / "joint").iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    holder(run)
    before = contents(run)
    with pytest.raises(CDNError, match=TAKEN):
        train.main(["--resume", str(run)])
    (run / "config.json").unlink()
    before.pop(next(path for path in before if path.name == "config.json"))
    with pytest.raises(CDNError, match=TAKEN):
        train.main(["--out", str(run), *freeze.TINY])
    assert contents(run) == before


def test_a_run_can_be_evaluated_while_it_is_trained(tmp_path, holder, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for path in (freeze.FOLDER / "0.1.0" / "resnet").iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    holder(run)
    assert evaluate.main([str(run), "--limit", "2"]) is None
    assert (run / "evaluation.json").exists()
    with pytest.raises(CDNError, match=TAKEN):
        take(run)


def test_a_read_only_run_is_refused_before_it_is_trained(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for path in (freeze.FOLDER / "0.1.0" / "joint").iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    before = contents(run)
    with read_only(run), pytest.raises(CDNError, match="cannot be written: Permission denied"):
        train.main(["--resume", str(run)])
    assert contents(run) == before and LOCK not in [path.name for path in run.iterdir()]


def test_the_lock_is_waited_for_as_long_as_is_said(tmp_path, holder):
    """As a run does that torchrun starts again, while the processes that it had may still be ending."""
    process = holder(tmp_path)
    with pytest.raises(CDNError, match=TAKEN), locked(tmp_path, patience=0.3):
        pass
    threading.Timer(0.5, lambda: os.kill(process, signal.SIGKILL)).start()
    with locked(tmp_path, patience=60):
        pass


def test_runs_without_a_name_get_one_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [train.new_folder(tmp_path / "runs" / "now") for _ in range(3)]
    assert [path.name for path in folders] == ["now", "now-2", "now-3"]
    with pytest.raises(CDNError):
        train.main(["--data", "cifar10", "--data-dir", "nowhere"])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["now", "now-2", "now-3"]
