"""A run that is killed, interrupted or damaged: what is lost, and what is said."""

import os
import signal

import pytest
import torch

from cdn.errors import CDNError, CheckpointError
from cdn.files import write_atomically
from cdn.run_folder.names import PREVIOUS, STATE
from cdn.run_folder.state import load_state, save_state
from cdn.run_folder.weights import load
from tests.training.interrupted import rows, same_weights, start, train, wait_for_step

# Muon brings AdamW with it.
TINY = (
    "--width 8 --steps 30 --batch-size 16 --optimizer muon --log-every 5 --evaluations 2 --checkpoint-seconds 0"
    " --device cpu"
)


@pytest.fixture(scope="session")
def unbroken(train_once):
    """A run that nothing happened to."""
    return train_once("unbroken", TINY)


def test_a_run_leaves_what_it_promises(unbroken):
    for name in ("config.json", "metrics.jsonl", "model.safetensors", "state.pt", "denoising.png", "curves.png"):
        assert (unbroken / name).stat().st_size > 0, name
    last = rows(unbroken, "evaluation")[-1]
    wanted = {
        "step",
        "accuracy",
        "ece",
        *(f"{key}_{s}" for key in ("accuracy_sigma", "psnr_noisy", "psnr") for s in (15, 25, 50)),
    }
    assert wanted <= set(last) and last["step"] == 30
    assert [r["step"] for r in rows(unbroken, "train")] == [5, 10, 15, 20, 25, 30]
    assert load(unbroken).classes == tuple("0123456789")


def test_killed_and_resumed_ends_with_the_same_weights(unbroken, tmp_path):
    run = tmp_path / "run"
    process = start("--out", run, *TINY.split())
    wait_for_step(run, 10, process)
    process.kill()
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL and load_state(run)["step"] < 30
    resumed = train("--resume", run)
    assert resumed.status == 0, resumed.err
    same_weights(run, unbroken)
    timed = ("seconds", "images_per_second")
    drop = lambda row: {k: v for k, v in row.items() if k not in timed}
    # An average may cover fewer steps after a resume; what is logged of single steps agrees.
    assert [r["step"] for r in rows(run)] == [r["step"] for r in rows(unbroken)]
    assert list(map(drop, rows(run, "evaluation"))) == list(map(drop, rows(unbroken, "evaluation")))


@pytest.mark.usefixtures("blank_pictures")
def test_ctrl_c_saves_and_exits(unbroken, tmp_path):
    run = tmp_path / "run"
    process = start("--out", run, *TINY.split())
    wait_for_step(run, 5, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130 and "Traceback" not in err
    assert f"--resume {run}" in out + err
    resumed = train("--out", run, "--resume")
    assert resumed.status == 0, resumed.err
    same_weights(run, unbroken)


def test_the_killed_state_is_whole_and_so_is_the_one_before(unbroken):
    for name in (STATE, PREVIOUS):
        assert torch.load(unbroken / name, weights_only=True)["format"] == "cdn-state-1"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def replace_by_text(path):
    path.write_text("not a checkpoint")


def replace_by_foreign(path):
    torch.save({"weights": torch.zeros(3)}, path)


class Evil:
    """Unpickled, this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def replace_by_code(path):
    torch.save({"format": "cdn-state-1", "evil": Evil(path.with_name("executed"))}, path)


@pytest.mark.parametrize(
    "damage, message",
    [
        (truncate, "torn"),
        (flip_a_byte, "torn"),
        (replace_by_text, "torn"),
        (replace_by_foreign, "not a checkpoint"),
        (replace_by_code, "more than tensors"),
    ],
)
def test_damaged_states_are_refused(tmp_path, damage, message):
    for step in (1, 2):
        save_state(tmp_path, dict(step=step, model={"w": torch.arange(1000.0)}))
    damage(tmp_path / STATE)
    with pytest.raises(CheckpointError, match=message) as error:
        load_state(tmp_path)
    assert f"mv {tmp_path / PREVIOUS}" in str(error.value), "the message should name the state before"
    assert not (tmp_path / "executed").exists()
    os.replace(tmp_path / PREVIOUS, tmp_path / STATE)
    assert load_state(tmp_path)["step"] == 1


def test_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CDNError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", [truncate, replace_by_text])
def test_damaged_weights_are_refused(unbroken, tmp_path, damage):
    path = tmp_path / "model.safetensors"
    path.write_bytes((unbroken / "model.safetensors").read_bytes())
    damage(path)
    with pytest.raises(CheckpointError, match="torn or not a safetensors file"):
        load(tmp_path)


def test_an_existing_run_is_not_overwritten(unbroken):
    status, out, err = train("--out", unbroken, *TINY.split())
    assert status == 1 and "already holds a run" in err and "Traceback" not in err


def test_resume_refuses_other_settings(unbroken):
    status, out, err = train("--resume", unbroken, "--width", "16")
    assert status == 1 and "width = 8" in err


def test_resume_of_nothing(tmp_path):
    status, out, err = train("--resume", tmp_path / "nothing")
    assert status == 1 and "no run folder" in err and err.count("\n") == 1
