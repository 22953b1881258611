"""Runs that tests share: each is trained once, by whichever process of pytest-xdist asks for it first."""

import contextlib
import io
import os
import tempfile

import torch
from filelock import FileLock

from cdn.commands import train

# A joint model after a few steps, and a joint energy model.
TINY = "--width 8 --steps 8 --batch-size 16 --evaluations 1 --device cpu"
TINY_JEM = (
    "--objective jem --width 8 --steps 6 --batch-size 16 --jem-steps 3 --jem-buffer 40 --evaluations 1 --device cpu"
)


class SharedRuns:
    """Run folders that all tests may read and none may change.

    Args:
        folder: where they lie; the same for all processes of a session.
    """

    def __init__(self, folder):
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.contents = {}

    def __call__(self, name, options):
        """Return the run folder of a name; if there is none, train it.

        Args:
            name: of the folder.
            options: of ``python -m cdn.train``, one string.
        """
        run = self.folder / name
        with FileLock(self.folder / f"{name}.lock"):
            if not run.exists():
                self._train(run, options)
        self.contents.setdefault(run, contents(run))
        return run

    def _train(self, run, options):
        # What a test draws or reads from the output does not depend on whether it is the one for which a run is made.
        said = io.StringIO()
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as folder,
            torch.random.fork_rng(devices=[]),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            made = os.path.join(folder, run.name)
            train.main(["--out", made, "--device", "cpu", "--evaluations", "1", *options.split()])
            os.rename(made, run)

    def check(self):
        """Raise AssertionError where a test has changed a run that others read."""
        for run, before in self.contents.items():
            assert contents(run) == before, f"a test changed {run}, which others read: it should take a copy"


def weights(run):
    """Return the weights that training goes on from, by name."""
    return torch.load(run / "state.pt", weights_only=True)["model"]


def contents(folder):
    """Return when each file below a folder was written, but for locks and probes, which begin with a dot."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in files}
