"""Write the files that this version leaves on disk to tests/frozen/VERSION, once per release.

    python -m tests.frozen.freeze

tests/test_frozen.py reads those of all versions, and compares with what they gave when they were written. Files of a
released version are never made again: where its folder is there already, nothing is written.
"""

import shutil
import signal
import sys
import tempfile
from pathlib import Path
from unittest import mock

import safetensors.torch
import torch

import cdn
import cdn_kernels
from cdn.commands import train
from cdn.methods.synthesis.generators import ClassGenerators, save_generators
from cdn.training.trainer import Trainer

FOLDER = Path(__file__).parent
STEPS, STOPPED_AFTER = 6, 4
TINY = f"--width 8 --steps {STEPS} --batch-size 16 --evaluations 1 --log-every 2 --device cpu".split()
# Kinds of runs; the first two are stopped, and keep what it takes to go on: both optimizers, and chains.
RUNS = {
    "joint": ["--optimizer", "muon"],
    "jem": ["--objective", "jem", "--jem-steps", "1", "--jem-buffer", "16"],
    "resnet": ["--model", "resnet-small"],
    "denoiser": ["--model", "denoiser-small"],
}
STOPPED = ("joint", "jem")
GENERATORS, EXPECTED = "generators.safetensors", "expected.safetensors"
KEPT = {"config.json", "metrics.jsonl", "model.safetensors"}


def images():
    """Return what models are asked about: [4, 1, 8, 8] in [0, 1]."""
    return torch.linspace(0, 250, 4 * 64).sin().abs().view(4, 1, 8, 8)


def answers(model):
    """Return what a model says of the images: logits [4, 10], and the images denoised [4, 1, 8, 8]."""
    found, y = {}, images()
    if not isinstance(model, cdn.DirectDenoiser):
        with torch.no_grad():
            found["logits"] = model(y)
    if not isinstance(model, cdn.ResNet):
        found["denoised"] = cdn.denoise(model, y, 0.2)
    return found


def reconstructed(generators):
    """Return what every class makes of the images: [4, 2, 1, 8, 8]."""
    with torch.no_grad():
        return generators.decode(generators.encode(images())[0])


def main():
    """Write the files of this version."""
    version = FOLDER / cdn_kernels.__version__
    if version.exists():
        sys.exit(f"{version} is there already, and what was released does not change")
    with tempfile.TemporaryDirectory() as place:
        written = Path(place)
        expected = {}
        for name, options in RUNS.items():
            expected |= {f"{name}.{key}": value for key, value in _write_run(written / name, name, options).items()}
        generators = ClassGenerators(2, (1, 8, 8), latents=2, width=8)
        save_generators(written / GENERATORS, generators, dict(steps=0))
        expected["generators.reconstructed"] = reconstructed(generators)
        safetensors.torch.save_file({k: v.contiguous() for k, v in expected.items()}, written / EXPECTED)
        shutil.copytree(written, version)


def _write_run(run, name, options):
    """Leave a run as it is kept, and return what its model says, and said at its end if it is kept stopped."""
    command = ["--out", str(run), *TINY, *options]
    if name not in STOPPED:
        train.main(command)
        _keep(run, KEPT)
        return answers(cdn.load(run))
    take = Trainer.take

    def stop_in_time(self):
        if self.step == STOPPED_AFTER - 1:
            signal.raise_signal(signal.SIGINT)
        return take(self)

    with mock.patch.object(Trainer, "take", stop_in_time):
        train.main(command)
    found = answers(cdn.load(run))
    whole = run.with_name(f"{name}-whole")
    shutil.copytree(run, whole)
    train.main(["--resume", str(whole)])
    found |= {f"{key}.resumed": value for key, value in answers(cdn.load(whole)).items()}
    shutil.rmtree(whole)
    _keep(run, KEPT | {"state.pt"})
    return found


def _keep(run, names):
    for path in run.iterdir():
        if path.name not in names:
            path.unlink()


if __name__ == "__main__":
    main()
