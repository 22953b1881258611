"""The experiments run from the command line, on data small enough for a test."""

import json

import numpy as np
import pytest

from cdn.commands import evaluate
from cdn.errors import CDNError
from cdn.experiments import ablation, compare
from cdn.pictures.run_comparison import JEM_REMARK, read_run, reliabilities


@pytest.fixture
def tiny_cifar10(tmp_path):
    """A folder in the official binary layout, with random images."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        records = rng.integers(0, 256, (40, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / name)
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n")
    return tmp_path


@pytest.mark.parametrize(
    "study, names",
    [
        ("model", ["log-energy, scale-preserving", "linear, plain", "cross-entropy only", "direct denoiser"]),
        ("recipe", ["free norms", "deep energies start at full size", "cross-entropy only, adamw"]),
    ],
)
def test_ablation_runs_tabulates_and_does_not_repeat_itself(study, names, tiny_cifar10, tmp_path, capsys):
    options = [
        "--data-dir",
        str(tiny_cifar10),
        "--out",
        str(tmp_path / "out"),
        "--steps",
        "2",
        "--seeds",
        "0",
        "--study",
        study,
    ]
    for _ in range(2):
        ablation.main([*options, "--only", *names])
    assert len((tmp_path / "out" / f"{study}.jsonl").read_text().splitlines()) == len(names)
    capsys.readouterr()
    ablation.main([*options, "--table"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(names) and all(line.count("|") == 11 for line in lines)


def test_a_variant_of_another_study_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        ablation.main(["--out", str(tmp_path), "--study", "recipe", "--only", "clip 3"])
    assert "'clip 3' is no variant of the study 'recipe'" in capsys.readouterr().err


def test_compare_puts_runs_side_by_side(joint_run, plain_run, denoiser_run, copy_run, tmp_path, capsys):
    runs = [copy_run(joint_run), copy_run(plain_run), denoiser_run]
    for run in runs[:2]:
        evaluate.main([str(run), "--limit", "20"])
    capsys.readouterr()
    compare.main([*map(str, runs), "--out", str(tmp_path / "out")])
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert capsys.readouterr().out.strip() == table.strip()
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table.splitlines()}
    assert [cell.strip() == "-" for cell in rows["accuracy, clean"]] == [False, False, True]
    assert [cell.strip() == "-" for cell in rows["PSNR dB, sigma 25/255"]] == [False, True, False]
    assert [cell.strip() for cell in rows["test images classified"]] == ["20", "20", "-"]
    assert [cell.strip() for cell in rows["test images denoised"]] == ["20", "-", "360"]
    assert [cell.strip() == "-" for cell in rows["SSIM, sigma 25/255"]] == [False, True, True]
    found = reliabilities([read_run(run) for run in runs])
    assert list(found) == ["joint", "plain"]
    for data, run in zip(found.values(), runs):
        assert data.error() == pytest.approx(json.loads((run / "evaluation.json").read_text())["ece"])
    assert "joint energy" not in table
    for picture in ("comparison.png", "reliability.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 10_000


def test_compare_says_what_a_joint_energy_model_is_measured_by(jem_run, tmp_path):
    compare.main([str(jem_run), "--out", str(tmp_path)])
    assert JEM_REMARK in (tmp_path / "comparison.md").read_text()
    assert not (tmp_path / "reliability.png").exists(), "nothing was evaluated"


def test_compare_says_what_is_missing(joint_run, copy_run, tmp_path):
    run = copy_run(joint_run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows if r["kind"] == "train"))
    with pytest.raises(CDNError, match="has no evaluation to compare"):
        compare.main([str(run), "--out", str(tmp_path)])
