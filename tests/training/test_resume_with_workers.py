"""A run with workers that is killed, or loses one, or meets an image that is cut off, and is resumed."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.interrupted import same_weights, start, train, wait_for_step

pytestmark = pytest.mark.slow
# Random parts are read anew in every epoch, by workers if there are any.
OPTIONS = (
    "--data imagefolder --image-size 12 --crop-area 0.3 --width 8 --steps 24 --batch-size 8 --log-every 4"
    " --evaluations 1 --checkpoint-seconds 0 --device cpu"
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of two classes of JPEG files of 24x20 pixels."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 4)):
        for kind in ("cat", "dog"):
            (folder / split / kind).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / kind / f"{number:02}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def whole(photographs, tmp_path_factory):
    """A run without workers that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = train("--out", run, *OPTIONS.split(), "--data-dir", photographs, "--workers", 0)
    assert done.status == 0, done.err
    return run


def started(run, folder, workers):
    """Start a run and wait until some steps are done."""
    process = start("--out", run, *OPTIONS.split(), "--data-dir", folder, "--workers", workers)
    wait_for_step(run, 4, process)
    return process


def resumed(run, *options):
    done = train("--resume", run, *options)
    assert done.status == 0, done.err
    return run


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_killed_and_resumed(photographs, whole, workers, tmp_path):
    process = started(tmp_path / "run", photographs, workers)
    process.kill()
    process.communicate(timeout=240)  # which waits for the workers too, for they have its streams
    same_weights(resumed(tmp_path / "run"), whole)


def test_a_dead_worker_ends_the_run_in_a_sentence(photographs, whole, tmp_path):
    process = started(tmp_path / "run", photographs, 2)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1 and "worker" in err and "Traceback" not in err
    same_weights(resumed(tmp_path / "run", "--workers", 1), whole)


def worker_of(pid):
    """Return the number of a process that reads images for another: a child of the server that forks."""
    servers = [c for c in children(pid) if b"forkserver" in Path(f"/proc/{c}/cmdline").read_bytes()]
    return children(servers[0])[0]


def children(pid):
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_cut_off_meanwhile_ends_the_run_in_a_sentence(photographs, whole, workers, tmp_path):
    folder = tmp_path / "photographs"
    shutil.copytree(photographs, folder)
    path = folder / "train" / "dog" / "07.jpg"
    content = path.read_bytes()
    process = started(tmp_path / "run", folder, workers)
    path.write_bytes(content[: len(content) // 2])
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1 and "07.jpg" in err and "Traceback" not in err
    path.write_bytes(content)
    same_weights(resumed(tmp_path / "run"), whole)
