"""``python -m cdn.train`` in several processes: who writes, what is said and how often, and what outlives a kill."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from unittest import mock

import pytest
import torch

from cdn.commands import train
from cdn.errors import CDNError, DataError
from cdn.processes import ALONE, joined, local_rank
from cdn.run_folder.names import STATE
from cdn.run_folder.state import load_state
from cdn.training.trainer import Trainer
from tests.faults import full_disk
from tests.forked import LIMIT, free_port, in_processes, say

processes = pytest.mark.processes
TINY = "--width 8 --steps 30 --batch-size 16 --log-every 5 --evaluations 2 --checkpoint-seconds 0 --device cpu"


@contextlib.contextmanager
def at_step(step, rank, happen):
    """Let something happen in one process when it prepares a step."""
    prepare = Trainer.prepare

    def prepared(trainer):
        if trainer.step == step and trainer.processes.rank == rank:
            happen()
        prepare(trainer)

    with mock.patch.object(Trainer, "prepare", prepared):
        yield


def broken_image():
    raise DataError("photo.jpg: expected an 8-bit image, got a truncated one")


def disk_is_full():
    UNTIL_THE_END.enter_context(full_disk())


def ask_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


UNTIL_THE_END = contextlib.ExitStack()  # of the process
FAULTS = {
    "data": partial(at_step, 7, 1, broken_image),
    "disk": partial(at_step, 7, 0, disk_is_full),
    "signal": partial(at_step, 7, 1, ask_to_stop),
}
TRAIN = "cdn.commands.train"


def rows(run, kind):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in found if row["kind"] == kind]


def close(run, other, tolerance=1e-3):
    """Say whether two runs ended with the same weights but for rounding; both took steps of AdamW in float32."""
    a, b = load_state(run), load_state(other)
    assert a["step"] == b["step"] and a["model"].keys() == b["model"].keys()
    return all((a["model"][name] - value).norm() <= tolerance * value.norm() for name, value in b["model"].items())


@pytest.fixture(scope="session")
def alone(train_once):
    """The run that one process makes of it."""
    return train_once("alone", TINY)


@processes
@pytest.mark.usefixtures("blank_pictures")
def test_one_writes_and_speaks(alone, tmp_path):
    run = tmp_path / "run"
    (status, out, err), *others = in_processes(3, say, TRAIN, ["--out", run, *TINY.split()], join=False)
    assert (status, err) == (0, "") and others == [(0, "", "")] * 2
    assert len(re.findall("kernels: ", out)) == 1 and "test accuracy" in out
    assert rows(run, "train") == [5, 10, 15, 20, 25, 30] and rows(run, "evaluation") == [15, 30]
    assert {path.name for path in run.iterdir()} == {path.name for path in alone.iterdir()} and close(run, alone)
    again = in_processes(2, say, TRAIN, ["--out", run, *TINY.split()], join=False)
    assert [status for status, _, _ in again] == [1, 1]
    sentence = f"error: {run} already holds a run: continue it with --resume {run}, or choose another --out\n"
    assert sorted(err for _, _, err in again) == ["", sentence]


@processes
@pytest.mark.parametrize(
    "fault, status, said, step",
    [
        ("data", 1, "error: process 1: photo.jpg: expected an 8-bit image, got a truncated one\n", 7),
        ("disk", 1, r"error: could not write .*; what was there before is intact\n", 6),
        ("signal", 130, "", 8),
    ],
)
def test_what_ends_one_ends_all_and_loses_nothing(tmp_path, alone, fault, status, said, step):
    run = tmp_path / "run"
    (first, out, err), other = in_processes(2, say, TRAIN, ["--out", run, *TINY.split()], FAULTS[fault], join=False)
    # One of them says it for all; the first alone prints.
    assert (first, *other[:2]) == (status, status, "") and not (err and other[2])
    assert re.fullmatch(said, err + other[2]), err + other[2]
    assert load_state(run)["step"] in (step, step + 1)
    if status == 130:
        assert f"--resume {run}" in out
        ended = in_processes(3, say, TRAIN, ["--resume", run], join=False)
        assert [found[0] for found in ended] == [0, 0, 0] and close(run, alone)


def test_others_that_do_not_come_are_waited_for_so_long(monkeypatch):
    port = free_port()
    place = dict(RANK=1, WORLD_SIZE=2, LOCAL_RANK=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    start = time.monotonic()
    with pytest.raises(CDNError, match=f"process 1 of 2 did not meet the others at 127.0.0.1:{port} .* 1 s") as error:
        with joined(torch.device("cpu"), timedelta(seconds=1)):
            pass
    assert "\n" not in str(error.value) and time.monotonic() - start < 60
    monkeypatch.setenv("RANK", "0")  # the one that others are to meet
    with pytest.raises(CDNError, match="process 0 of 2 did not meet the others"):
        with joined(torch.device("cpu"), timedelta(seconds=1)):
            pass


@pytest.mark.parametrize(
    "place, message",
    [
        (dict(RANK="1"), "WORLD_SIZE: expected a whole number in the environment, as torchrun sets it, got ''"),
        (dict(RANK="x", WORLD_SIZE="2"), "RANK: expected a whole number in the environment, .* got 'x'"),
        (dict(RANK="2", WORLD_SIZE="2"), "rank: expected one of 2 processes, 0 to 1, got 2"),
    ],
)
def test_what_torchrun_would_not_say_is_refused(monkeypatch, place, message):
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CDNError, match=message), joined(torch.device("cpu")):
        pass


def test_one_process_of_torchrun_is_alone(monkeypatch):
    for name, value in dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0").items():
        monkeypatch.setenv(name, value)
    with joined(torch.device("cpu")) as found:
        assert found is ALONE and local_rank() is None


def test_what_torchrun_restarts_needs_a_name(monkeypatch):
    for name, value in dict(RANK="0", WORLD_SIZE="1", TORCHELASTIC_MAX_RESTARTS="3").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CDNError, match="--out: name the run folder"):
        train.main(TINY.split())


# As torchrun starts them


def torchrun(*options, run, training=TINY):
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, "-m", "cdn.train", "--out", run, *training.split()],
        env=os.environ | dict(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, process):
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"it did not come to that: {process.communicate()}")


def workers(agent):
    """Return the numbers of the processes that an agent has started."""
    with open(f"/proc/{agent.pid}/task/{agent.pid}/children") as file:
        return [int(number) for number in file.read().split()]


@processes
def test_two_agents_train_one_run_and_start_a_killed_process_again(alone, tmp_path):
    run, port = tmp_path / "run", free_port()
    meeting = "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"
    agents = [torchrun(*meeting, "--rdzv-id=run", "--max-restarts=2", run=run) for _ in range(2)]
    wait_for(lambda: (run / STATE).exists() and load_state(run)["step"] >= 5, agents[0])
    os.kill(workers(agents[1])[0], signal.SIGKILL)
    said = [agent.communicate(timeout=LIMIT)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert "".join(said).count("test accuracy") == 1 and "from step " in "".join(said)
    assert rows(run, "train") == [5, 10, 15, 20, 25, 30] and close(run, alone)


@processes
def test_torchrun_told_to_end_lets_the_run_be_saved(tmp_path):
    run = tmp_path / "run"
    training = TINY.replace("--steps 30", "--steps 3000")
    agent = torchrun("--standalone", "--nproc-per-node=2", run=run, training=training)
    wait_for(lambda: (run / STATE).exists() and load_state(run)["step"] >= 5, agent)
    agent.terminate()
    said, _ = agent.communicate(timeout=LIMIT)
    step = load_state(run)["step"]
    assert agent.returncode != 0 and 5 <= step < 3000
    assert f"stopped at step {step} of 3000; go on with: python -m cdn.train --resume {run}" in said
