"""Tiny untrained models, a split of random images, and run folders on disk."""

import json

import pytest
import torch

from cdn.data.split import MemorySplit
from cdn.model import DirectDenoiser, GradResNet, ResNet
from cdn.run_folder.weights import save_model

DIGITS = tuple("0123456789")
MODELS = {
    "joint": lambda channels: GradResNet(10, channels, width=8, blocks=(1, 1)),
    "classifier": lambda channels: ResNet(10, channels, width=8, blocks=(1, 1)),
    "denoiser": lambda channels: DirectDenoiser(channels, width=8, blocks=(1, 1)),
}


@pytest.fixture
def make_model():
    """Return a function from a kind and a number of channels to an untrained model."""

    def make(kind="joint", channels=1):
        torch.manual_seed(0)
        return MODELS[kind](channels).eval()

    return make


@pytest.fixture
def make_split():
    """Return a function that makes a split of random images, some of them inexact."""

    def make(count=300, shape=(1, 8, 8), inexact=()):
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 10, (count,), generator=generator)
        exact = torch.ones(count, dtype=torch.bool)
        exact[list(inexact)] = False
        return MemorySplit(images, labels, exact)

    return make


@pytest.fixture
def make_run(tmp_path, make_model):
    """Return a function that writes a run folder of an untrained model of the digits."""

    def make(kind="joint", channels=1):
        run = tmp_path / f"run-{kind}-{channels}"
        run.mkdir()
        model = make_model(kind, channels)
        save_model(run / "model.safetensors", model, DIGITS)
        config = dict(
            data=dict(name="digits", data_dir=None, image_size=None, shape=[channels, 8, 8]),
            classes=DIGITS,
            model=model.config,
            training=dict(sigma_low=0.01, sigma_high=1.0),
        )
        (run / "config.json").write_text(json.dumps(config))
        return run

    return make
