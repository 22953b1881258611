"""Certificates of a trained model hold against attacks, and the command writes, draws and resumes them."""

import json

import pytest
import torch
from tqdm import tqdm

import cdn
from cdn.commands import certify as command
from cdn.commands.certify import certify_images
from cdn.errors import CDNError
from cdn.methods.attacks.ball import Ball
from cdn.methods.attacks.gradient import pgd
from cdn.methods.attacks.losses import cross_entropy
from cdn.methods.attacks.pursuit import Pursuit
from cdn.methods.smoothing import ABSTAIN, predict_smoothed
from cdn.methods.smoothing import certificate as smoothing
from cdn.methods.smoothing.certificate import certified_accuracy
from cdn.run_folder.journal import Journal
from cdn.run_folder.opened import open_run
from tests.threads import together


def run(folder, out, *options):
    command.main(
        [
            str(folder),
            "--device",
            "cpu",
            "--out",
            str(out),
            "--limit",
            "6",
            "--n0",
            "10",
            "--n",
            "60",
            "--sigmas",
            "0.25",
            "0.5",
            *map(str, options),
        ]
    )
    return json.loads((out / "report.json").read_text())["results"]


def test_no_attack_within_the_radius_changes_the_smoothed_digits(digits_run):
    opened = open_run(digits_run)
    sigma, model = 0.25, opened.model
    images, _ = opened.dataset.test.load(torch.arange(6))
    x = images.float() / 255
    found = cdn.certify(model, x, sigma, 20, 300, 0.001)
    assert (found.label != ABSTAIN).sum() >= 4
    eps = torch.randn(16, 1, 8, 8)
    smoothed = lambda x: model(x + sigma * eps).softmax(1).mean(0, keepdim=True).log()

    def predict_attacked(scale):
        attacked = x.clone()
        for i in (found.label != ABSTAIN).nonzero()[:, 0].tolist():
            pursuit = Pursuit(smoothed, x[i : i + 1], found.label[i : i + 1], cross_entropy, stop=False)
            pgd(pursuit, x[i : i + 1], Ball("l2", scale * float(found.radius[i])), 8, cdn.Noise(i))
            attacked[i] = pursuit.best[0]
        return predict_smoothed(model, attacked, sigma, 200, 0.001)

    inside, beyond = predict_attacked(0.999), predict_attacked(5)
    certified = found.label != ABSTAIN
    assert ((inside == found.label) | (inside == ABSTAIN))[certified].all()
    assert ((beyond != found.label) & (beyond != ABSTAIN))[certified].any()


def test_it_tabulates_draws_and_reports(digits_run, tmp_path, capsys):
    results = run(digits_run, tmp_path)
    assert [(r["run"], r["sigma"], r["images"]) for r in results] == [("digits", 0.25, 6), ("digits", 0.5, 6)]
    images, labels = open_run(digits_run).dataset.test.load(torch.arange(6))
    found = cdn.certify(cdn.load(digits_run), images.float() / 255, 0.25, 10, 60)
    expected = float(((found.label == labels) & (found.radius >= 0.25)).double().mean())
    assert results[0]["certified_accuracy"]["0.25"] == pytest.approx(expected)
    assert results[0]["largest_radius"] == pytest.approx(cdn.methods.smoothing.largest_radius(0.25, 60, 0.001))
    printed = capsys.readouterr().out
    assert "| digits |  0.25 |" in printed and (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.usefixtures("blank_pictures")
def test_an_interrupted_command_goes_on(digits_run, tmp_path, monkeypatch):
    whole = run(digits_run, tmp_path / "whole")
    certify, calls = smoothing.certify, []

    def interrupted(*args, **options):
        calls.append(options["first"])
        if len(calls) == 9:
            raise KeyboardInterrupt
        return certify(*args, **options)

    monkeypatch.setattr(command.smoothing, "certify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(digits_run, tmp_path / "part")
    rows = tmp_path / "part" / "certificates.jsonl"
    assert len(rows.read_text().splitlines()) == 8
    with rows.open("a") as file:
        file.write('{"image": 2, "lab')  # a crash tears the last line
    resumed = run(digits_run, tmp_path / "part")
    assert calls == [*range(6), 0, 1, 2, *range(2, 6)]
    strip = lambda results: [{k: v for k, v in r.items() if "second" not in k} for r in results]
    assert strip(resumed) == strip(whole)
    run(digits_run, tmp_path / "part", "--seed", "1")  # other settings are no reason to skip, or to forget
    assert len(calls) == 13 + 12 and len(Journal(rows).rows) == 24


def test_processes_take_turns(digits_run, tmp_path):
    """Seven images on three processes, some of them certified before: every one writes through the first."""
    opened, bar = open_run(digits_run), tqdm(disable=True)
    images, _ = opened.dataset.test.images(torch.arange(7))
    how = dict(n0=5, n=20, alpha=0.001, seed=0, precision="float32")
    timeless = lambda rows: [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    alone = certify_images(opened, images, Journal(tmp_path / "alone"), 0.25, 256, bar, **how)
    for before in (0, 2):
        path = tmp_path / f"three-{before}"
        path.write_text("".join(json.dumps(row) + "\n" for row in alone[3 : 3 + before]))

        def work(processes, path=path):
            journal = Journal(path) if processes.first else None
            return certify_images(opened, images, journal, 0.25, 256, bar, processes, **how)

        assert [timeless(rows) for rows in together(3, work)] == [timeless(alone)] * 3
        rows = Journal(path).rows
        assert timeless(sorted(rows, key=lambda row: row["image"])) == timeless(alone) and len(rows) == 7


@pytest.mark.usefixtures("blank_pictures")
def test_runs_side_by_side(digits_run, plain_run, tmp_path):
    results = run(digits_run, tmp_path / "out", "--against", plain_run)
    assert [r["run"] for r in results] == ["digits", "digits", "plain", "plain"]


def test_certified_accuracy_counts_right_labels_only():
    shares = certified_accuracy([0, 1, 2, 3], [0, 1, 1, ABSTAIN], [0.1, 0.5, 0.9, 0.0], [0, 0.1, 0.3, 0.6])
    assert shares.tolist() == [0.5, 0.5, 0.25, 0.0]


def test_bad_input_gets_a_sentence(digits_run, denoiser_run, tmp_path, capsys):
    with pytest.raises(CDNError, match="expected a run that classifies, got a DirectDenoiser"):
        run(digits_run, tmp_path / "out", "--against", denoiser_run)
    (tmp_path / "out" / "certificates.jsonl").write_text("{}\nrubbish\n")
    with pytest.raises(CDNError, match="line 2 is no row of results"):
        run(digits_run, tmp_path / "out")
    for option, value, sentence in (
        ("--alpha", "1", "expected a number between 0 and 1, got '1'"),
        ("--sigmas", "0", "expected a number above 0, such as 0.1 or 25/255, got '0'"),
        ("--radii", "-1", "expected"),
    ):
        with pytest.raises(SystemExit):
            run(digits_run, tmp_path / "out", option, value)
        assert sentence in capsys.readouterr().err
