"""The models of the package: their trainings, records and pages, and the patches that one of them is trained on."""

import json
import re
import shutil

import pytest
import torch

from benchmarks.harness.checkout import ROOT
from benchmarks.models import figures, hours, keep, page, patches, ship, trainings
from cdn.errors import CDNError
from cdn.images.image_files import write_image
from cdn.run_folder import shipped
from cdn.run_folder.config import read_config
from cdn.run_folder.names import CONFIG

# What a sentence measured, if it has any of these. Sizes, versions and settings are others.
MEASURED = re.compile(r"\d ?(%|dB|ms|minutes?|hours?|seconds?|images/s)|\d(\.\d+)? times")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_results_and_the_figures_of_the_readme_are_what_the_records_make():
    assert page.PAGE.read_text() == page.page()
    for path in (page.README, page.ABLATIONS):
        assert path.read_text() == page.with_figures(path.read_text())


def test_what_the_readme_measured_is_made_of_records():
    text = page.README.read_text()
    marks = re.findall(r"<!-- figures: (\w+) -->", text + page.ABLATIONS.read_text())
    assert sorted(marks) == sorted(figures.FIGURES)
    typed = re.sub(r"<!-- figures: .*?<!-- end -->", "", text, flags=re.DOTALL)
    assert not [line for line in typed.splitlines() if MEASURED.search(line)]


def test_sentences_of_the_page_measure_nothing():
    texts = [text for of_one in page.EXPERIMENTS.values() for text in of_one] + [page.HEAD, page.COMPARISON]
    texts += [text for _, text in page.TITLES.values()]
    assert not [text for text in texts if MEASURED.search(text)]


def test_an_unknown_mark_is_refused():
    with pytest.raises(CDNError, match="figures: weather: expected one of models, speed, seconds, patches"):
        page.with_figures("<!-- figures: weather -->\n<!-- end -->")


def test_every_model_and_comparison_has_trainings():
    assert shipped.SHA256.keys() <= ship.ABOUT.keys() == trainings.TWINS.keys()
    for name, twins in (trainings.TWINS | trainings.COMPARED).items():
        for training in (name, *twins):
            assert f"--out runs/{training}" in trainings.command(training)
            assert trainings.settings(training).objective


def test_shipped_models_were_trained_by_the_command_that_is_known_for_them():
    for name in shipped.SHA256:
        facts = json.loads((shipped.FOLDER / name / shipped.CARD).read_text())
        assert facts["command"] == trainings.command(name)
        assert not trainings.departures(name, read_config(shipped.FOLDER / name).training)


def test_records_are_of_the_trainings_by_their_names():
    folders = [path.parent for path in keep.RECORDS.glob(f"*/{CONFIG}")]
    assert folders
    for folder in folders:
        assert not trainings.departures(folder.name, read_config(folder).training)


def test_records_name_no_folder_of_a_machine():
    texts = {path: path.read_text() for path in keep.RECORDS.glob("*/*.json")}
    assert texts and not [path for path, text in texts.items() if re.search(r'["\s]/\w+/', text)]


def test_a_run_of_other_settings_is_not_shipped(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(shipped.FOLDER / "digits", run)
    with pytest.raises(CDNError, match="was not trained by `python -m cdn.train .*`: it has another"):
        ship.main([str(run), "cifar10"])


def test_hours_are_steps_times_what_one_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(trainings.TRAININGS, "digits", "--width 8 --steps 1000 --batch-size 8 --out runs/digits")
    hours.main(["digits", "--record", str(tmp_path / "hours.json")])
    row = json.loads((tmp_path / "hours.json").read_text())["digits"]
    assert (row["steps"], row["images"]) == (1000, 8000) and row["step_seconds"] > 0
    assert f"{1000 * row['step_seconds'] / 3600:.2f}" in capsys.readouterr().out


def test_records_are_kept_without_folders_of_a_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(keep, "IMAGES", tmp_path / "images")
    run, results = tmp_path / "run", tmp_path / "results"
    (results / "denoisers").mkdir(parents=True)
    run.mkdir()
    (run / "config.json").write_text(json.dumps(dict(training=dict(data_dir="/home/someone/data"))))
    (run / "metrics.jsonl").write_text('{"kind": "train"}\n')
    (run / "curves.png").write_bytes(b"curves")
    (results / "denoisers" / "report.json").write_text(
        json.dumps(dict(options=dict(run="/there/runs/tiny"), text=["/ of 3"]))
    )
    (results / "denoisers" / "picture.png").write_bytes(b"picture")
    keep.main(["tiny", str(run), str(results)])
    kept = {path.name: path for path in (tmp_path / "records" / "tiny").iterdir()}
    assert kept.keys() == {"config.json", "metrics.jsonl", "denoisers.json"}
    assert json.loads(kept["config.json"].read_text()) == dict(training=dict(data_dir="data"))
    assert json.loads(kept["denoisers.json"].read_text()) == dict(options=dict(run="tiny"), text=["/ of 3"])
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    assert pictures == {"tiny-curves.png": b"curves", "tiny-denoisers-picture.png": b"picture"}
    with pytest.raises(CDNError, match="nowhere: expected a folder of a run or of results"):
        keep.main(["tiny", "nowhere"])


def test_patches_of_small_pictures_and_of_large_photographs(tmp_path, capsys):
    small, large = tmp_path / "small", tmp_path / "large"
    for split in ("train", "val"):
        (small / split / "class").mkdir(parents=True)
        for number in range(2):
            write_image(small / split / "class" / f"{number}.png", torch.rand(1, 3, 20, 20))
    large.mkdir()
    for number in range(patches.HELD_OUT):
        write_image(large / f"{number}.png", torch.rand(1, 3, 33, 50))
    out = tmp_path / "patches"
    arguments = ["--small", str(small), "--large", str(large), "--side", "8", "--out", str(out)]
    patches.main([*arguments, "--reduce", "2", "4"])
    # 16x25 pixels hold two rows of three, 8x12 one.
    assert capsys.readouterr().out.splitlines() == [
        "small: 2 patches to train on, 2 to validate",
        f"large: {9 * 7} patches to train on, 7 to validate",
    ]
    assert len(list(out.glob("train/large/*.png"))) == 9 * 7
    with pytest.raises(CDNError, match="--out: .* exists: name a new folder"):
        patches.main(arguments)
    with pytest.raises(CDNError, match="there is nothing to make patches of"):
        patches.main(["--out", str(tmp_path / "none")])
