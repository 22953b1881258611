"""The order of the images: a pure function of the step, each epoch a permutation."""

import pytest
import torch

from cdn.data.sampler import balanced_indices, batch_indices, steps_per_epoch
from cdn.errors import DataError


def epoch_of(size, batch_size, epoch, seed=3):
    steps = steps_per_epoch(size, batch_size)
    return torch.cat([batch_indices(size, batch_size, epoch * steps + step, seed) for step in range(steps)])


@pytest.mark.parametrize(("size", "batch_size"), [(12, 4), (13, 4), (1, 1), (7, 7)])
def test_each_epoch_is_a_permutation_less_the_remainder(size, batch_size):
    for epoch in range(3):
        indices = epoch_of(size, batch_size, epoch)
        assert indices.dtype == torch.int64
        assert len(indices) == size // batch_size * batch_size
        assert len(indices.unique()) == len(indices)
        assert indices.min() >= 0 and indices.max() < size


def test_epochs_and_seeds_differ():
    orders = [epoch_of(100, 10, epoch, seed) for epoch in range(3) for seed in range(3)]
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)


def test_a_step_depends_on_its_arguments_alone():
    steps = [0, 9, 10, 11, 25]
    forward = [batch_indices(103, 10, step, 5) for step in steps]
    torch.manual_seed(99)
    backward = [batch_indices(103, 10, step, 5) for step in reversed(steps)]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward)))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    batch_indices(50, 5, 77, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_editing_a_batch_leaves_the_next_call_whole():
    batch = batch_indices(20, 5, 0, 0)
    expected = batch.clone()
    batch.zero_()
    assert torch.equal(batch_indices(20, 5, 0, 0), expected)


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_a_batch_must_fit(batch_size):
    with pytest.raises(DataError, match=rf"batch_size: expected 1\.\.10 .* got {batch_size}"):
        batch_indices(10, batch_size, 0, 0)


@pytest.mark.parametrize(("step", "seed"), [(-1, 0), (0, -1)])
def test_step_and_seed_are_not_negative(step, seed):
    with pytest.raises(ValueError, match="must be an integer in"):
        batch_indices(10, 2, step, seed)


LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)


@pytest.mark.parametrize("count", [1, 2, 10, 33, 99, 100])
def test_a_choice_holds_the_classes_in_proportion(count):
    chosen = balanced_indices(LABELS, count, 3)
    assert chosen.dtype == torch.int64 and len(chosen) == count == len(chosen.unique())
    shares = LABELS[chosen].bincount(minlength=3) - count * LABELS.bincount() / 100
    assert float(shares.abs().max()) <= 1


def test_a_smaller_choice_is_the_beginning_of_a_larger_one():
    large = balanced_indices(LABELS, 60, 3)
    assert torch.equal(balanced_indices(LABELS, 25, 3), large[:25])
    assert not torch.equal(balanced_indices(LABELS, 60, 4), large)
    assert not torch.equal(large.sort().values, torch.arange(60))


@pytest.mark.parametrize("count", [0, 101])
def test_a_choice_has_at_most_all_images(count):
    with pytest.raises(DataError, match=rf"train_images: expected 1\.\.100 .* got {count}"):
        balanced_indices(LABELS, count, 0)
