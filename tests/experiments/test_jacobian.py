"""The Jacobian of a trained denoiser: the command, and its figures against dense Jacobians."""

import json

import numpy as np
import pytest
import torch

import cdn
from cdn.data import load_dataset
from cdn.errors import CDNError
from cdn.experiments import jacobian
from cdn.experiments.runner import REPORT
from cdn.methods.spectrum.denoiser_jacobian import Jacobian, eigenpairs, matrix, probe
from cdn.methods.spectrum.dimension import effective_dimension

SIGMA = 50 / 255


@pytest.fixture
def trained(digits_run):
    """The trained model and a noisy test digit [1, 1, 8, 8], in float64."""
    images, _ = load_dataset("digits").test.load(torch.arange(1))
    return cdn.load(digits_run).double(), images / 255 + SIGMA * torch.randn(1, 1, 8, 8, dtype=torch.float64)


def run(folder, out, *options):
    jacobian.main([str(folder), "--out", str(out), "--device", "cpu", *options])
    return json.loads((out / REPORT).read_text())["results"]


def test_matrix_free_and_dense_jacobian_agree(trained):
    model, y = trained
    denoise = lambda y: cdn.denoise(model, y, SIGMA, create_graph=True)
    dense = torch.autograd.functional.jacobian(denoise, y).view(64, 64)
    scale = float(dense.abs().max())
    torch.testing.assert_close(matrix(model, y[0], SIGMA), dense, rtol=0, atol=1e-11 * scale)
    assert float((dense - dense.T).abs().max()) < 1e-11 * scale
    values, vectors = np.linalg.eigh(dense.numpy())
    pairs = eigenpairs(model, y[0], SIGMA, 4, 3, generator=torch.Generator().manual_seed(0), tolerance=1e-9)
    np.testing.assert_allclose(pairs.values.numpy(), [*values[:-5:-1], *values[2::-1]], atol=1e-10)
    overlaps = np.abs(np.sum(pairs.vectors.flatten(1).numpy() * vectors.T[[-1, -2, -3, -4, 2, 1, 0]], axis=1))
    np.testing.assert_allclose(overlaps, 1, atol=1e-8)
    probing = probe(Jacobian(model, y, SIGMA), 256, cdn.Noise(0))
    assert abs(float(probing.trace) - float(dense.trace())) < 4 * float(probing.trace_error)
    assert float(probing.asymmetry) < 1e-13


def test_the_command_on_a_density(digits_run, tmp_path, capsys):
    results = run(
        digits_run, tmp_path, "--limit", "200", "--sigmas", "25/255", "50/255", "--probes", "6", "--image", "2"
    )
    assert results["size"] == 64 and results["images"] == 200 and list(results["sigma"]) == ["25/255", "50/255"]
    for level in results["sigma"].values():
        assert level["asymmetry"] < 1e-5 and level["asymmetry_float64"] < 1e-13
        assert len(level["values"]) == 64 and len(level["largest"]) == 6 and len(level["smallest"]) == 3
        assert level["residual"] < 1e-5 and level["lanczos_error"] < 1e-5 and 0.5 < level["cosine"] <= 1
        assert abs(sum(level["values"]) - level["exact_trace"]) < 1e-4
        trace, error = level["hutchinson"]
        assert abs(trace - level["exact_trace"]) < 4 * error
        # Stein's estimate needs no clean image, and is right for any denoiser if the trace is.
        difference, error = level["loss_minus_stein"]
        assert abs(difference) < 4 * error and error < 0.1
        assert abs(level["loss"][0] - level["trace"][0] / 64 - level["loss_minus_trace"][0]) < 1e-12
    # The stronger the noise, the fewer dimensions survive.
    assert 64 > results["sigma"]["25/255"]["trace"][0] > results["sigma"]["50/255"]["trace"][0] > 0
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("eigenvectors.png", "spectrum.png"))
    assert "64 values each" in capsys.readouterr().out


@pytest.mark.usefixtures("blank_pictures")
def test_seeds_and_batches(digits_run, tmp_path):
    options = ("--limit", "6", "--sigmas", "50/255", "--no-dense", "--largest", "2", "--smallest", "0")
    first, again, other = (
        run(digits_run, tmp_path, *options, *more)["sigma"]["50/255"] for more in ((), (), ("--seed", "1"))
    )
    assert first == again and first["trace"] != other["trace"]
    assert first["values"] is None and first["smallest"] == []


def test_a_direct_denoiser_has_no_eigenpairs_but_singular_values(denoiser_run, tmp_path, capsys):
    results = run(denoiser_run, tmp_path / "out", "--limit", "100", "--sigmas", "50/255", "--image", "1")["sigma"][
        "50/255"
    ]
    assert "is not symmetric" in capsys.readouterr().out
    assert results["asymmetry"] > 1e-3 and results["asymmetry_float64"] > 1e-3
    assert results["largest"] is None and results["values"][-1] >= 0
    difference, error = results["loss_minus_stein"]
    assert abs(difference) < 4 * error
    assert (tmp_path / "out" / "spectrum.png").exists() and not (tmp_path / "out" / "eigenvectors.png").exists()
    results = run(denoiser_run, tmp_path / "out", "--limit", "3", "--sigmas", "50/255", "--no-dense")["sigma"]["50/255"]
    assert results["values"] is None and results["largest"] is None


def test_stein_notices_a_wrong_trace(digits_run, monkeypatch):
    """The check of the trace against the measured loss sees products that are a fifth too small."""
    model = cdn.load(digits_run)
    images, _ = load_dataset("digits").test.load(torch.arange(200))

    def deviation():
        found = effective_dimension(model, images.float() / 255, SIGMA, cdn.Noise(1), 4, cdn.Noise(2), batch_size=100)
        difference = found.loss - found.stein
        return abs(float(difference.mean() / difference.std())) * len(images) ** 0.5

    assert deviation() < 4
    product = Jacobian.transposed_product
    monkeypatch.setattr(Jacobian, "transposed_product", lambda self, v: 0.8 * product(self, v))
    assert deviation() > 4


def test_refusals(digits_run, plain_run, tmp_path):
    with pytest.raises(CDNError, match="--image: expected one of the .* test images, 0 to .*, got 100000"):
        run(digits_run, tmp_path, "--image", "100000")
    with pytest.raises(CDNError, match="--probes: .* at least 2, got 1"):
        run(digits_run, tmp_path, "--probes", "1")
    for options in (("--largest", "62"), ("--krylov", "8")):
        with pytest.raises(CDNError, match="expected at most .* eigenpairs together"):
            run(digits_run, tmp_path, *options)
    with pytest.raises(SystemExit):
        run(digits_run, tmp_path, "--sigmas", "-5")
    with pytest.raises(CDNError, match="a ResNet, which only classifies"):
        run(plain_run, tmp_path)
