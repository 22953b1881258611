"""The search for the best latents: closed forms where there are any, and what it leaves as it was."""

import pytest
import torch

from cdn.methods.synthesis import ClassGenerators, infer, pixel_distance
from tests.methods.synthesis.linear_generators import LinearGenerators, random_generators


def test_it_finds_the_optimum_of_linear_generators():
    generators = random_generators()
    x = torch.rand(7, *generators.shape, dtype=torch.float64)
    found = infer(generators, x, steps=400, draws=8)
    z, square = generators.optimum(x)
    torch.testing.assert_close(found.latents, z, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.bound, -square / (2 * 0.3**2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.reconstructions, generators.decode(z), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.bound, -found.distances - found.latents.square().sum(-1) / 2)


def test_the_bound_is_the_evidence_but_for_a_constant():
    """For linear generators log p(x, z | c) at its maximum and log p(x | c) differ by a log-determinant."""
    generators = random_generators(latents=3, sigma=0.4)
    x = torch.rand(6, *generators.shape, dtype=torch.float64)
    found = infer(generators, x, steps=400, draws=8)
    identity = torch.eye(12, dtype=torch.float64)
    for c, (weight, bias) in enumerate(zip(generators.weight, generators.bias)):
        marginal = torch.distributions.MultivariateNormal(bias, weight @ weight.T + 0.16 * identity)
        difference = (marginal.log_prob(x.flatten(1)) - found.bound[:, c]).detach()
        torch.testing.assert_close(difference, difference[:1].expand(6), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rate", [0.1, 50.0])
def test_never_worse_than_its_start(rate):
    generators = ClassGenerators(4, (1, 8, 8), latents=3, width=16).double()
    x = torch.rand(9, 1, 8, 8).double()
    start, found = (infer(generators, x, steps=steps, rate=rate) for steps in (0, 10))
    assert (found.bound >= start.bound - 1e-12).all() and (rate > 1 or (found.bound > start.bound).all())


def test_more_starts_leave_a_local_optimum():
    """The latent is drawn to 0, where the encoder starts, by an image as good as that: draws find the better one."""

    class Double(LinearGenerators):
        def decode(self, z):
            return super().decode(torch.where(z < 1.2, -1.5 * z.square(), (z - 1.5) * 4))

    generators = Double(torch.ones(1, 4, 1).double(), torch.zeros(1, 4).double(), (1, 2, 2), 0.1)
    x = torch.full((3, 1, 2, 2), 0.4).double()
    alone, more = (infer(generators, x, starts=starts, steps=200) for starts in (1, 3))
    torch.testing.assert_close(alone.latents, torch.zeros(3, 1, 1).double(), atol=1e-2, rtol=0)
    torch.testing.assert_close(more.latents, torch.full((3, 1, 1), 1.6).double(), atol=1e-2, rtol=0)


def test_the_draws_that_are_followed_are_the_best():
    generators = random_generators(latents=1)
    x = torch.rand(5, *generators.shape, dtype=torch.float64)
    few, many = (infer(generators, x, starts=2, steps=0, draws=draws, seed=3).bound for draws in (1, 200))
    _, square = generators.optimum(x)
    assert (many >= few).all() and (many > few).any()
    torch.testing.assert_close(many, -square / 0.18, atol=0.05, rtol=0)


def test_batches_and_chunks_change_nothing(monkeypatch):
    generators = ClassGenerators(3, (2, 8, 8), latents=3, width=8).double()
    x = torch.rand(7, 2, 8, 8).double()
    whole = infer(generators, x, steps=5, starts=3)
    monkeypatch.setattr("cdn.methods.synthesis.inference.CHUNK", 1)
    for one, other in zip(whole, infer(generators, x, steps=5, starts=3, batch_size=2)):
        torch.testing.assert_close(one, other)
    empty = infer(generators, x[:0])
    assert empty.bound.shape == (0, 3) and empty.reconstructions.shape == (0, 3, 2, 8, 8)


def test_deterministic_and_leaves_all_as_found():
    generators = ClassGenerators(3, (1, 8, 8), width=8)
    generators.encoder[0].bias.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in generators.parameters()]
    x, state = torch.rand(4, 1, 8, 8), torch.get_rng_state()
    first = infer(generators, x, steps=4)
    autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad, autocast):
        with mode():
            for one, other in zip(first, infer(generators, x.clone(), steps=4)):
                assert torch.equal(one, other) and not other.requires_grad
    assert flags == [parameter.requires_grad for parameter in generators.parameters()]
    assert all(parameter.grad is None for parameter in generators.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_another_distance_takes_the_place_of_the_pixels():
    generators = random_generators()
    x = torch.rand(4, *generators.shape, dtype=torch.float64)
    calls = []

    def twice(x, reconstructions):
        calls.append(reconstructions.shape)
        return 2 * pixel_distance(0.3)(x, reconstructions)

    found = infer(generators, x, twice, steps=300, draws=4)
    generators.sigma = torch.tensor(0.3 / 2**0.5, dtype=torch.float64)
    expected = infer(generators, x, steps=300, draws=4)
    torch.testing.assert_close(found.bound, expected.bound)
    torch.testing.assert_close(found.distances, twice(x, found.reconstructions))
    assert {shape[1:] for shape in calls} == {(4, 3, 2, 2, 3), (2, 3, 2, 2, 3), (3, 2, 2, 3)}


def test_images_made_in_inference_mode_take_any_distance():
    """A product, unlike a difference, keeps the image for the gradient, which such a tensor must not be."""
    product = lambda x, r: 10 - (x.view(len(x), *[1] * (r.dim() - 4), *x.shape[1:]) * r).flatten(-3).sum(-1)
    generators, x = random_generators(), torch.rand(3, 2, 2, 3, dtype=torch.float64)
    with torch.inference_mode():
        found = infer(generators, x.clone(), product, steps=3)
    torch.testing.assert_close(found.bound, infer(generators, x, product, steps=3).bound)


def test_pixel_distance():
    x, r = torch.rand(4, 2, 3, 3), torch.rand(4, 5, 6, 2, 3, 3)
    distance = pixel_distance(0.5)(x, r)
    assert distance.shape == (4, 5, 6)
    torch.testing.assert_close(distance[1, 2, 3], 2 * (x[1] - r[1, 2, 3]).square().sum())


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(steps=-1), "steps: expected at least 0, got -1"),
        (dict(starts=0), "starts: expected the encoder and at most 64 draws, so 1 to 65, got 0"),
        (dict(starts=3, draws=1), "so 1 to 2, got 3"),
    ],
)
def test_bad_options_get_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        infer(random_generators(), torch.rand(1, 2, 2, 3), **options)
