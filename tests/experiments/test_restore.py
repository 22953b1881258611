"""Restoration from the command line, on a run that was trained on the digits."""

import json

import pytest

from cdn.errors import CDNError
from cdn.experiments import restoration
from cdn.methods.prior.operators import PROBLEMS


def test_all_problems(digits_run, tmp_path, capsys):
    restoration.main(
        [str(digits_run), "--device", "cpu", "--limit", "16", "--samples", "2", "--beta", "0.3", "--out", str(tmp_path)]
    )
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())["results"]
    assert list(report) == list(PROBLEMS)
    for problem, result in report.items():
        assert f"| {problem} " in printed
        assert result["finished"] == 1 and result["largest_error"] < 1e-5
    # A block of 3 x 3 lost of 8 x 8; a quarter of the values; cosines that the blur left; 30 % of the values.
    assert report["inpainting"]["measured"] == pytest.approx(55 / 64)
    assert report["super-resolution"]["measured"] == 0.25
    for problem in ("inpainting", "missing-pixels", "compressive-sensing"):
        assert report[problem]["psnr"]["mean"] > report[problem]["psnr"]["pseudo-inverse"] + 1
    average = lambda kind: sum(result["psnr"][kind] for result in report.values())
    assert average("mean") > average("sample")
    assert (tmp_path / "picture.png").stat().st_size > 20_000


@pytest.mark.usefixtures("blank_pictures")
def test_the_seed_decides(digits_run, tmp_path):
    def values(seed):
        restoration.main(
            [
                str(digits_run),
                "--device",
                "cpu",
                "--limit",
                "4",
                "--samples",
                "1",
                "--beta",
                "0.5",
                "--problems",
                "inpainting",
                "--seed",
                str(seed),
                "--out",
                str(tmp_path),
            ]
        )
        return json.loads((tmp_path / "report.json").read_text())["results"]["inpainting"]["psnr"]

    first = values(1)
    assert values(1) == first and values(2)["sample"] != first["sample"]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--factor", "3"],
            "super-resolution: factor must be at least 1 and divide the sides of images of 8 x 8, got 3",
        ),
        (["--block", "8"], r"inpainting: block must be in \[1, 7\]"),
        (["--ratio", "0"], r"missing-pixels: ratio must be in \(0, 1\]"),
        (["--beta", "0"], r"--beta: expected a number in \(0, 1\], got 0"),
    ],
)
def test_bad_options(digits_run, tmp_path, options, message):
    with pytest.raises(CDNError, match=message):
        restoration.main([str(digits_run), "--device", "cpu", *options, "--out", str(tmp_path)])


def test_an_unknown_problem(digits_run, capsys):
    with pytest.raises(SystemExit):
        restoration.main([str(digits_run), "--problems", "dehazing"])
    assert "invalid choice: 'dehazing' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize("run", ["plain_run", "classification_run"])
def test_a_run_that_does_not_denoise(run, request):
    with pytest.raises(CDNError, match="expected a run"):
        restoration.main([str(request.getfixturevalue(run)), "--device", "cpu"])


@pytest.mark.usefixtures("blank_pictures")
def test_a_direct_denoiser_restores_too(denoiser_run, tmp_path):
    restoration.main(
        [
            str(denoiser_run),
            "--device",
            "cpu",
            "--limit",
            "4",
            "--samples",
            "1",
            "--beta",
            "0.5",
            "--problems",
            "inpainting",
            "--out",
            str(tmp_path / "out"),
        ]
    )
    result = json.loads((tmp_path / "out" / "report.json").read_text())["results"]["inpainting"]
    assert result["finished"] == 1 and result["largest_error"] < 1e-5
