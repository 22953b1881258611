"""The first images of a split, which every limited evaluation looks at: of all classes, however they are sorted."""

import pytest
import torch

from cdn.data.split import MemorySplit
from cdn.evaluation import evaluate, predict

SORTED = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)


def split_of(labels, exact=None):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(labels), 1, 8, 8), generator=generator, dtype=torch.uint8)
    return MemorySplit(images, labels, exact)


@pytest.mark.parametrize("count", [1, 2, 10, 33, 99])
def test_classes_take_turns_where_images_are_sorted_by_class(count):
    first = split_of(SORTED).first(count)
    assert len(first) == count == len(first.unique())
    shares = SORTED[first].bincount(minlength=3) - count * SORTED.bincount() / 100
    assert float(shares.abs().max()) <= 1


def test_a_smaller_choice_is_the_beginning_of_a_larger_one():
    split = split_of(SORTED)
    assert torch.equal(split.first(10), split.first(60)[:10])


@pytest.mark.parametrize("count", [None, 100, 1000])
def test_all_images_keep_their_order(count):
    assert torch.equal(split_of(SORTED).first(count), torch.arange(100))


def test_images_in_no_order_of_classes_are_taken_as_they_come():
    labels = torch.tensor([2, 0, 1, 1, 0, 2])
    assert split_of(labels).first(4).tolist() == [0, 1, 2, 3]


def test_only_exact_images_are_chosen_where_they_are_asked_for():
    exact = torch.ones(100, dtype=torch.bool)
    exact[::2] = False
    split = split_of(SORTED, exact)
    assert split.first(exact=True).tolist() == list(range(1, 100, 2))
    first = split.first(10, exact=True)
    assert (first % 2 == 1).all() and set(SORTED[first].tolist()) == {0, 1, 2}
    exact[:] = False
    assert len(split_of(SORTED, exact).first(5, exact=True)) == 0


def test_a_limited_evaluation_sees_all_classes(make_model):
    model, labels = make_model(), torch.arange(10).repeat_interleave(20)
    split = split_of(labels)
    _, known = predict(model, split, limit=10)
    assert sorted(known.tolist()) == list(range(10))
    with torch.no_grad():
        hits = (model(split.images(split.first(30))[0]).argmax(1) == labels[split.first(30)]).float().mean()
    report = evaluate(model, split, limit=30, denoising_limit=5)
    assert report["accuracy"] == pytest.approx(float(hits)) and report["denoised"] == 5
