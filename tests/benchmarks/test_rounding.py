"""What float32 leaves of gradients, on models that were not trained."""

import pytest

import cdn
from benchmarks import rounding
from cdn.errors import CDNError
from cdn.run_folder.config import RunConfig, write_config
from cdn.run_folder.weights import save_model

DIGITS = [str(digit) for digit in range(10)]


def untrained(folder, objective="joint"):
    model = cdn.gradresnet_small(10, 1, width=8)
    folder.mkdir()
    save_model(folder / "model.safetensors", model, DIGITS)
    write_config(
        folder,
        RunConfig(
            data=dict(name="digits", data_dir=None, image_size=None),
            classes=list(DIGITS),
            model=model.config,
            training=dict(sigma_low=0.01, sigma_high=1.0, denoising_weight=3.0, objective=objective),
        ),
    )
    return str(folder)


def test_it_compares_with_float64(tmp_path, capsys):
    run = untrained(tmp_path / "run")
    rounding.main([run, "--limit", "80"])
    inputs, parameters = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert "others (80)" in inputs[1] and len(inputs) == 3 + 6 and len(parameters) == 2 + 6
    errors = [float(cell) for line in inputs[3:] for cell in line.split("|")[2:4]]
    errors += [float(cell) for line in parameters[2:] for cell in line.split("|")[5:7]]
    assert all(0 < error < 1e-2 for error in errors)


def test_it_needs_classes(tmp_path):
    with pytest.raises(CDNError, match="was trained to denoise only, it has no classes"):
        rounding.main([untrained(tmp_path / "run", "denoising")])
