"""Changes of a trainer that studies try: each does what it says, before the first step."""

import pytest
import torch
import torch.nn.functional as F

from cdn.data import load_dataset
from cdn.model.gradresnet import Filters
from cdn.training.changes import CHANGES
from cdn.training.settings import Settings
from cdn.training.studies import STUDIES, settings_of, variant_trainer
from cdn.training.trainer import Trainer

DIGITS = load_dataset("digits")


@pytest.fixture
def trainer():
    settings = Settings(width=16, steps=8, batch_size=16, optimizer="muon", flip=True, clean_share=0.5)
    return Trainer(settings, DIGITS, 8, torch.device("cpu"))


def change(trainer, name, value):
    with torch.no_grad():
        CHANGES[name](trainer, value)


@pytest.mark.parametrize("study", STUDIES)
def test_every_variant_has_settings(study):
    base, variants = STUDIES[study]
    for options in variants.values():
        assert settings_of(base | options).steps == (base | options)["steps"]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_whitened_stem_gives_independent_features_of_variance_one(trainer, frozen):
    change(trainer, "whitened_stem", frozen)
    weight = trainer.model.trunk.stem[0].weight
    assert weight.requires_grad != frozen
    images, _ = DIGITS.train.images(torch.arange(len(DIGITS.train)))
    patches = F.unfold(images - images.mean((0, 2, 3), keepdim=True), 3).transpose(0, 1).flatten(1)
    found = weight.detach().flatten(1) @ patches
    covariance = found @ found.T / found.shape[1]
    # Nine directions, spread over more filters, hold nine units of variance at most; the least ones hold less.
    assert 8 < covariance.trace() < 9.01
    assert torch.linalg.eigvalsh(covariance)[-1] < 1.01


def test_identity_like_filters_pass_their_input_on_and_keep_their_norms(trainer):
    filters = [m for m in trainer.model.trunk.stages.modules() if isinstance(m, Filters) and m.weight.shape[-1] == 3]
    norms = [m.weight.detach().flatten(1).norm(dim=1) for m in filters]
    change(trainer, "identity_filters", True)
    for module, norm in zip(filters, norms):
        weight = module.weight.detach()
        own = min(weight.shape[:2])
        torch.testing.assert_close(weight.flatten(1).norm(dim=1), norm)
        torch.testing.assert_close(weight[range(own), range(own), 1, 1], norm[:own])


def test_alternating_flips_mirror_every_image_in_every_other_epoch(trainer):
    change(trainer, "alternating_flips", True)
    batches, period = trainer.batches, len(DIGITS.train) // 16
    mirrored = [{}, {}]
    for epoch, seen in enumerate(mirrored):
        for step in range(epoch * period, (epoch + 1) * period):
            indices, *_, flips = batches._draw(step)
            seen.update(zip(indices.tolist(), flips.tolist()))
    both = mirrored[0].keys() & mirrored[1].keys()
    assert len(both) > 1300 and all(mirrored[0][index] != mirrored[1][index] for index in both)
    assert 0.4 < sum(mirrored[0].values()) / len(mirrored[0]) < 0.6


def test_the_share_of_clean_images_changes_over_the_run(trainer):
    change(trainer, "clean_shares", (0.25, 0.75))
    clean = []
    for _ in range(8):
        trainer.prepare()
        clean.append(trainer.clean[0])
        trainer.take()
    assert clean == [4] * 4 + [12] * 4


def test_a_variant_begins_with_its_changes_in_the_average_too():
    options = dict(data="digits", steps=2, width=8, deep_energy=0.5, identity_filters=True)
    changed = variant_trainer(DIGITS, options, 0)
    for mine, theirs in zip(changed.average.parameters(), changed.model.parameters()):
        assert torch.equal(mine, theirs)
