"""All classes in one pass, and generators that survive the disk."""

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from cdn.errors import CheckpointError
from cdn.methods.synthesis import ClassGenerators, load_generators, save_generators


def one_class(layers, c, values):
    """Send values [M, inputs] through the layers of one class."""
    for k, layer in enumerate(layers):
        values = values @ layer.weight[c] + layer.bias[c]
        values = F.gelu(values) if k < len(layers) - 1 else values
    return values


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 12)])
def test_one_pass_for_all_classes_equals_class_by_class(shape):
    generators = ClassGenerators(4, shape, latents=3, width=17).double()
    z, x = torch.randn(5, 4, 3).double(), torch.rand(5, *shape).double()
    images, (mean, log_variance) = generators.decode(z), generators.encode(x)
    assert images.shape == (5, 4, *shape) and mean.shape == log_variance.shape == (5, 4, 3)
    for c in range(4):
        torch.testing.assert_close(images[:, c].flatten(1), one_class(generators.decoder, c, z[:, c]).sigmoid())
        encoded = one_class(generators.encoder, c, 2 * x.flatten(1) - 1)
        torch.testing.assert_close(torch.cat([mean[:, c], log_variance[:, c]], 1), encoded)


def test_any_number_of_leading_dimensions():
    generators = ClassGenerators(3, (2, 8, 8), latents=2, width=6).double()
    z = torch.randn(4, 5, 3, 2).double()
    each = torch.stack([torch.stack([generators.decode(latent) for latent in row]) for row in z])
    torch.testing.assert_close(generators.decode(z), each)
    x = torch.rand(4, 3, 2, 8, 8).double()
    for c in range(3):
        torch.testing.assert_close(generators.encode(x)[0][:, c], generators.encode(x[:, c])[0][:, c])


def test_deterministic_by_seed_whatever_else_is_drawn():
    weight = lambda seed: ClassGenerators(2, (1, 8, 8), width=4, seed=seed).decoder[0].weight
    state = torch.get_rng_state()
    assert torch.equal(weight(1), weight(1)) and not torch.equal(weight(1), weight(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_deviation_of_pixels():
    learned, fixed = ClassGenerators(2, (1, 8, 8)), ClassGenerators(2, (1, 8, 8), sigma=0.125)
    assert learned.log_sigma.requires_grad and not fixed.log_sigma.requires_grad
    torch.testing.assert_close(fixed.sigma, torch.tensor(0.125))


def test_saved_generators_come_back(tmp_path):
    generators = ClassGenerators(3, (1, 8, 9), latents=5, width=12, sigma=0.2, seed=3)
    save_generators(tmp_path / "g.safetensors", generators, dict(steps=7))
    again, settings = load_generators(tmp_path / "g.safetensors")
    z = torch.randn(2, 3, 5)
    assert torch.equal(again.decode(z), generators.decode(z)) and settings == dict(steps=7)
    assert again.config == generators.config and not again.log_sigma.requires_grad


def test_files_that_hold_none(tmp_path):
    with pytest.raises(CheckpointError, match="none does not exist"):
        load_generators(tmp_path / "none")
    save_generators(tmp_path / "torn", ClassGenerators(2, (1, 8, 8), width=4))
    (tmp_path / "torn").write_bytes((tmp_path / "torn").read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="is torn or not a safetensors file"):
        load_generators(tmp_path / "torn")
    save_file(dict(a=torch.zeros(2)), tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds no generators of this package"):
        load_generators(tmp_path / "other")
    save_generators(tmp_path / "whole", ClassGenerators(2, (1, 8, 8), width=4))
    with safe_open(tmp_path / "whole", "pt") as file:
        save_file(
            {name: file.get_tensor(name)[:1] for name in file.keys() if name != "log_sigma"},  # noqa: SIM118 - the file itself is no iterable
            tmp_path / "half",
            file.metadata(),
        )
    with pytest.raises(CheckpointError, match="half does not fit the model it names: .*size mismatch"):
        load_generators(tmp_path / "half")


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(latents=0), "latents: expected at least 1, got 0"),
        (dict(width=-1), "width: expected at least 1, got -1"),
        (dict(classes=0), "classes: expected at least 1"),
        (dict(shape=(1, 0, 8)), "shape: expected at least 1, got 0"),
        (dict(sigma=0.0), "sigma: expected a number above 0, or None to learn it, got 0.0"),
    ],
)
def test_bad_sizes_get_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ClassGenerators(**dict(classes=2, shape=(1, 8, 8)) | options)
