"""Damaged files of runs, which once ended in a traceback or in a silent wrong answer: one line that names each."""

import json
import math

import pytest
import torch

import cdn
from cdn.errors import CDNError, CheckpointError, DataError
from cdn.images.decoder import decode
from cdn.run_folder.config import read_config
from cdn.run_folder.forms import misfit
from cdn.run_folder.journal import Journal
from cdn.training.settings import Settings
from tests.command_rows import COMMANDS, edit_config, make_place, run
from tests.data.image_files import tiff

WRONG_FINGERPRINTS = [dict(train=0), dict(train=dict(holds=3)), dict(test=dict(holds={"0": 3})), dict(classes=3)]
DEEP = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.fixture
def at(tmp_path):
    return make_place(tmp_path / "place")


@pytest.fixture
def compared(at):
    """A run that can be compared."""
    path = at.run / "metrics.jsonl"
    last = dict(json.loads(path.read_text().splitlines()[-1]), kind="evaluation", accuracy=0.5)
    path.write_text(path.read_text() + json.dumps(last) + "\n")
    return at


def edit_state(at, change):
    path = at.run / "state.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def of_adam(state, **changes):
    """Change what AdamW keeps of its first parameter."""
    state["optimizer"][0]["state"][0].update(changes)


STATES = {
    "a number for a momentum": lambda s: s["optimizer"][1]["state"][0].update(momentum_buffer=0.5),
    "a momentum of another shape": lambda s: s["optimizer"][1]["state"][0].update(momentum_buffer=torch.zeros(3)),
    "another dtype of a moment": lambda s: of_adam(s, exp_avg=s["optimizer"][0]["state"][0]["exp_avg"].bool()),
    "a moment less": lambda s: s["optimizer"][0]["state"][0].pop("exp_avg_sq"),
    "a step that is none": lambda s: of_adam(s, step=None),
    "an optimizer less": lambda s: s["optimizer"].pop(),
    "no list of optimizers": lambda s: s.update(optimizer={}),
    "a moment of no parameter": lambda s: s["optimizer"][0]["state"].update({99: s["optimizer"][0]["state"][0]}),
    "a step beyond the end": lambda s: s.update(step=10**9),
    "a step before the start": lambda s: s.update(step=-1),
    "a step of a half": lambda s: s.update(step=0.5),
    "no step": lambda s: s.pop("step"),
    "no health": lambda s: s.update(health=None),
    "other random numbers": lambda s: s.update(rng=torch.zeros(3, dtype=torch.uint8)),
    "weights of another dtype": lambda s: s["model"].update({"head.classes.weight": torch.ones(10, 20).bool()}),
    "weights of nan": lambda s: s["average"]["head.classes.weight"].fill_(math.nan),
    "no length of the log": lambda s: s.pop("metrics_bytes"),
    "a length of nan": lambda s: s.update(metrics_bytes=math.nan),
    "a time that is text": lambda s: s.update(seconds="1"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_does_not_fit_is_told(at, name, monkeypatch, capsys):
    edit_state(at, STATES[name])
    row = COMMANDS["train, resumed"]
    assert run(row.module, row.words(at), monkeypatch) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "does not fit its config.json" in printed


def test_hyperparameters_are_those_of_the_settings(at, monkeypatch, capsys):
    """A state that says otherwise, as with amsgrad, changes no step."""
    edit_state(at, lambda s: s["optimizer"][0]["param_groups"][0].update(amsgrad=True, weight_decay={}))
    row = COMMANDS["train, resumed"]
    assert run(row.module, row.words(at), monkeypatch) == 0


CONFIGS = {
    "data": [[], "x", dict(name=3), dict(shape=[None]), dict(shape={}), dict(data_dir=[]), dict(image_size=10**30)],
    "classes": ["x", [{}], [3]],
    "model": [[], None, dict(kind=[])],
    "training": [[], "x", dict(objective=[]), dict(sigma_low=math.nan), dict(sigma_high="1"), dict(sigma_law={})],
}


@pytest.mark.parametrize("part, value", [(part, value) for part in CONFIGS for value in CONFIGS[part]], ids=str)
def test_a_configuration_of_wrong_types_is_told(at, part, value):
    edit_config(at, **{part: value})
    with pytest.raises(CheckpointError, match=f"config.json is damaged: {part}.* is .*, expected"):
        read_config(at.run)


@pytest.mark.parametrize("name", ["config.json", "evaluation.json", "metrics.jsonl", "data.json"])
def test_json_that_is_nested_too_deeply_is_damaged(compared, name, monkeypatch, capsys):
    at = compared
    (at.run / name).write_text(DEEP)
    row = COMMANDS["train, resumed" if name == "data.json" else "compare"]
    assert run(row.module, row.words(at), monkeypatch) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and name in printed


def test_a_journal_that_is_nested_too_deeply_is_told(tmp_path):
    (tmp_path / "rows").write_text(DEEP + "\n")
    with pytest.raises(CDNError, match="line 1 is no row"):
        Journal(tmp_path / "rows")


@pytest.mark.parametrize("change", WRONG_FINGERPRINTS)
def test_a_fingerprint_of_wrong_types_is_told(at, change, monkeypatch, capsys):
    (at.run / "data.json").write_text(json.dumps(change))
    row = COMMANDS["train, resumed"]
    assert run(row.module, row.words(at), monkeypatch) == 1
    assert "data.json is damaged: " in capsys.readouterr().err


FIGURES = dict(
    config=[dict(total_steps=[]), dict(parameters=None), dict(parameters=[])],
    evaluation=[dict(accuracy="x"), dict(reliability=[1]), dict(reliability=dict(confidence="x")), []],
)


@pytest.mark.parametrize("file, value", [(file, value) for file in FIGURES for value in FIGURES[file]], ids=str)
def test_figures_that_cannot_be_shown_are_told(compared, file, value, monkeypatch, capsys):
    row = COMMANDS["compare"]
    if file == "config":
        edit_config(compared, **value)
    else:
        (compared.run / "evaluation.json").write_text(json.dumps(value))
    assert run(row.module, row.words(compared), monkeypatch) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and str(compared.run) in printed
    assert not (compared.out / "comparison.md").exists()


def test_a_log_that_was_changed_is_not_cut_within_a_row(at, monkeypatch, capsys):
    path = at.run / "metrics.jsonl"
    path.write_text("{}\n" + path.read_text())
    before = path.read_bytes()
    row = COMMANDS["train, resumed"]
    assert run(row.module, row.words(at), monkeypatch) == 1
    assert "it was changed since" in capsys.readouterr().err and path.read_bytes() == before


def test_settings_of_another_type_are_refused():
    for name, value in dict(steps="3", width=[], flip=3, clip=math.nan, seed=2**70, precision={}).items():
        with pytest.raises(CDNError, match=f"training.{name} is"):
            Settings.from_dict(Settings().as_dict() | {name: value})
    assert Settings.from_dict(Settings().as_dict()) == Settings()
    assert Settings.from_dict(dict(data="digits", mean=None, seed=2**64 - 1)).seed == 2**64 - 1


def test_classes_that_are_no_names_are_told(at, tmp_path):
    path = tmp_path / "model.safetensors"
    cdn.save_model(path, cdn.ResNet(2, 1, width=8, blocks=(1,)), ["a", 3])
    with pytest.raises(CheckpointError, match=r"classes\[1\] is int 3, expected str"):
        cdn.load(path)


def test_what_pillow_logs_is_no_second_line(tmp_path, capfd):
    (tmp_path / "a.tif").write_bytes(tiff(8, 9))
    with pytest.raises(DataError, match="a.tif"):
        decode(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""


def test_forms():
    form = dict(a=int, b=[float | None], c=dict(d=torch.zeros(2)), e=bool)
    fits = dict(a=3, b=[1, 0.5, None], c=dict(d=torch.ones(2)), e=True, more=0)
    assert misfit(fits, form) is None and misfit({}, form) is None
    assert misfit({}, form, "x", whole=True) == "x lacks or should not have 'a', 'b', 'c'"
    for change, told in (
        (dict(a=True), "a is bool True, expected int"),
        (dict(a=2**64), f"a is int {2**64}, expected int"),
        (dict(b=3), "b is int 3, expected a list"),
        (dict(b=[0, "x"]), "b[1] is str 'x', expected float | None"),
        (dict(b=[math.inf]), "b[0] is float inf, expected float | None"),
        (dict(c=[]), "c is list, expected names and values"),
        (dict(c=dict(d=torch.ones(3))), "c.d is a tensor [3] of torch.float32, expected a tensor [2] of torch.float32"),
        (dict(e=1), "e is int 1, expected bool"),
    ):
        assert misfit(fits | change, form) == told
