"""Models in wrappers of torch: asked as the module inside is, called as the wrapper; and what a model has learned."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
import torch
import torch.distributed
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import cdn
from cdn.commands import classify, denoise
from cdn.errors import CDNError
from cdn.methods.denoising_errors import DenoisingErrorClassifier
from cdn.methods.prior.residual import blind_residual
from cdn.methods.synthesis.generators import ClassGenerators, load_generators, save_generators
from cdn.model import capabilities, density
from cdn.run_folder.weights import load, save_model
from cdn_kernels import Noise, NoiseLevels

ROOT = Path(cdn.__file__).parent
MODELS = {
    "joint": lambda: cdn.GradResNet(3, 1, width=8, blocks=(1, 1)),
    "classifier": lambda: cdn.ResNet(3, 1, width=8, blocks=(1, 1)),
    "denoiser": lambda: cdn.DirectDenoiser(1, width=8, blocks=(1, 1)),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A group of processes of this one alone, as DistributedDataParallel needs."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS = {
    "AveragedModel": AveragedModel,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "compile": torch.compile,
    "Sequential": nn.Sequential,
    "several": lambda model: nn.Sequential(nn.DataParallel(AveragedModel(model))),
}


@pytest.fixture(params=WRAPPERS)
def wrap(request, alone, monkeypatch):
    """Each of the wrappers; what torch.compile returns runs uncompiled, is called alike, and takes seconds less."""
    torch.compiler.set_stance("force_eager")
    yield WRAPPERS[request.param]
    torch.compiler.set_stance("default")


Y, LABELS, NOISE = torch.linspace(0, 9, 128).sin().abs().view(2, 1, 8, 8), torch.tensor([0, 2]), Noise(1)


def step(model, **weights):
    inner = capabilities.unwrapped(model)
    inner.zero_grad()
    loss, parts = cdn.joint_step(model, Y, LABELS, 0.2, NOISE, **weights)
    return [loss, *parts.values(), *(p.grad for p in inner.parameters() if p.grad is not None)]


def calibrated(model):
    cdn.calibrate(model, Y, NOISE)
    return capabilities.unwrapped(model).calibration_mean_square


def saved(model, folder):
    save_model(folder / "model.safetensors", model, "abc")
    return list(load(folder).state_dict().values())


# What is asked of a model: of each name in cdn.__all__ that takes one, and what is made of these.
QUESTIONS = {
    "log_prob": lambda model: cdn.log_prob(model, Y),
    "score": lambda model: cdn.score(model, Y),
    "score, labels": lambda model: cdn.score(model, Y, LABELS),
    "class_scores": lambda model: density.class_scores(model, Y),
    "denoise": lambda model: cdn.denoise(model, Y, 0.2),
    "denoise, labels": lambda model: cdn.denoise(model, Y, 0.2, LABELS),
    "estimate_sigma": lambda model: cdn.estimate_sigma(model, Y),
    "calibrate": calibrated,
    "similarity": lambda model: cdn.similarity(model, Y[:1], Y[1:], nodes=1, levels=NoiseLevels("fixed", 0.1, 0.2)),
    "joint_loss": lambda model: cdn.joint_loss(model, Y, LABELS, 0.2, NOISE)[0],
    "joint_step": step,
    "joint_step, denoising": lambda model: step(model, classification_weight=0.0),
    "joint_step, classification": lambda model: step(model, denoising_weight=0.0),
    "certify": lambda model: list(cdn.certify(model, Y, 0.2, 2, 20)),
    "Protected, model": lambda model: cdn.Protected(MODELS["classifier"](), model, 0.2).purify(Y),
    "Protected, classifier": lambda model: cdn.Protected(model, FIXED, 0.2)(Y),
    "Denoiser": lambda model: cdn.Denoiser(model)(Y, 0.2).detach(),
    "blind_residual": lambda model: list(blind_residual(model)(Y)),
    "DenoisingErrorClassifier": lambda model: DenoisingErrorClassifier(model, nodes=1, draws=1)(Y, NOISE),
}
torch.manual_seed(0)
FIXED = MODELS["joint"]().eval()


def answers(function, *arguments):
    """Return the tensors that a function returns, or the type and text of what it raises."""
    try:
        found = function(*arguments)
    except Exception as error:
        return type(error), str(error)
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("kind", MODELS)
def test_wrapped_models_answer_as_the_model_inside(wrap, kind, tmp_path):
    model = MODELS[kind]().eval()
    wrapped = wrap(MODELS[kind]().eval())
    capabilities.unwrapped(wrapped).load_state_dict(model.state_dict())
    assert type(capabilities.unwrapped(wrapped)) is type(model)
    questions = QUESTIONS | {"save_model": lambda model: saved(model, tmp_path)}
    refused = set()
    for name, question in questions.items():
        if name == "Protected, classifier" and wrap is nn.DataParallel:
            continue  # torch.func.functional_call refuses it
        expected, found = answers(question, model), answers(question, wrapped)
        if isinstance(expected, tuple):
            refused.add(name)
            assert found == expected and issubclass(expected[0], ValueError), name
        else:
            assert len(found) == len(expected) and all(map(torch.equal, found, expected)), name
    assert not refused if kind == "joint" else 3 < len(refused) < len(questions)


def test_all_that_takes_a_model_is_asked():
    takes = {
        name for name in cdn.__all__ if {"model", "classifier"} & set(inspect.signature(getattr(cdn, name)).parameters)
    }
    asked = {name.partition(",")[0] for name in (*QUESTIONS, "save_model")}
    assert takes <= asked, "add a row to QUESTIONS"


# What a loaded model was trained on, and what is refused of it.
LEARNED = {
    "classification": {"log_prob", "score", "denoise", "estimate_sigma", "calibrate", "similarity", "Denoiser"},
    "denoising": {"certify"},
    "joint": set(),
    "jem": set(),
    None: set(),
}


@pytest.mark.parametrize("objective", LEARNED)
@pytest.mark.parametrize("told", ["by the file", "by its run"])
def test_loaded_models_refuse_what_they_did_not_learn(objective, told, tmp_path):
    inside = objective if told == "by the file" else None
    save_model(tmp_path / "model.safetensors", MODELS["joint"](), "abc", inside)
    if told == "by its run":
        (tmp_path / "config.json").write_text(json.dumps(dict(model={}, training=dict(objective=objective))))
    model = load(tmp_path)
    assert model.objective == objective
    refused = set()
    for name in ("log_prob", "score", "denoise", "estimate_sigma", "calibrate", "similarity", "certify", "Denoiser"):
        found = answers(QUESTIONS[name], model)
        if isinstance(found, tuple):
            assert found[0] is ValueError and f"a GradResNet trained on {objective} only" in found[1]
            refused.add(name)
    assert refused == LEARNED[objective]
    for function, role in ((cdn.Protected, "model"), (cdn.Protected, "classifier")):
        other = "denoising" if role == "classifier" else "classification"
        arguments = dict(model=FIXED, classifier=FIXED, sigma=0.2) | {role: model}
        if objective == other:
            with pytest.raises(ValueError, match=f"{role}: expected .* trained on {objective} only"):
                function(**arguments)
        else:
            function(**arguments)


@pytest.mark.parametrize(
    "objective, able, unable",
    [("denoising", "denoise", "classify"), ("classification", "classify", "denoise"), ("jem", "denoise", None)],
)
def test_commands_refuse_what_a_run_did_not_learn(objective, able, unable, tmp_path, capsys):
    source = tmp_path / "in.png"
    Image.new("L", (8, 8), 99).save(source)
    run, out = tmp_path / "run", tmp_path / "out.png"
    run.mkdir()
    save_model(run / "model.safetensors", FIXED, "abc", objective)
    commands = {
        "denoise": lambda: denoise.main([str(run), str(source), str(out), "--sigma", "0.1"]),
        "classify": lambda: classify.main([str(run), str(source)]),
    }
    assert not commands[able]()
    out.unlink(missing_ok=True)
    if unable:
        with pytest.raises(CDNError, match=f"got a GradResNet trained on {objective} only"):
            commands[unable]()
    assert not out.exists()
    capsys.readouterr()
    if objective == "classification":
        classify.main([str(run), str(source), "--json"])
        assert "log_density" not in json.loads(capsys.readouterr().out)


def test_no_one_else_asks_for_the_kind_of_a_model():
    """Kinds are compared in one place, which sees through wrappers and knows what was trained."""
    asked = set()
    for path in ROOT.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "type"):
                if {"ResNet", "DirectDenoiser", "GradResNet"} & set(re.findall(r"\w+", ast.unparse(node))):
                    asked.add(path.relative_to(ROOT).as_posix())
    assert asked == {"model/capabilities.py"}


def test_a_model_loaded_in_inference_mode_works_outside(tmp_path):
    save_model(tmp_path / "model.safetensors", FIXED)
    with torch.inference_mode():
        model = load(tmp_path)
        inside = cdn.denoise(model, Y, 0.2)
    assert torch.equal(cdn.denoise(model, Y, 0.2), inside)
    assert torch.equal(step(model)[0], step(FIXED)[0])
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())
    made = ClassGenerators(2, (1, 4, 4), latents=1, width=4)
    save_generators(tmp_path / "generators.safetensors", made, {})
    with torch.inference_mode():
        generators, _ = load_generators(tmp_path / "generators.safetensors")
    assert not any(tensor.is_inference() for tensor in generators.state_dict().values())


@pytest.mark.parametrize("options", [{}, dict(find_unused_parameters=True)], ids=str)
def test_reducers_get_one_complete_gradient_of_noisy_and_clean_images(alone, options):
    """A reducer that doubles what it is given would miss what came after it, or double it twice."""
    torch.manual_seed(0)
    model, sigma = MODELS["joint"](), torch.tensor([0.0, 0.2])
    cdn.joint_step(model, Y, LABELS, sigma, NOISE)
    expected = {name: 2 * p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    wrapped, reduced = DistributedDataParallel(model, **options), []

    def double(state, bucket):
        reduced.append(bucket.buffer().numel())
        done = torch.futures.Future()
        done.set_result(2 * bucket.buffer())
        return done

    wrapped.register_comm_hook(None, double)
    for _ in range(2):  # the second step has other buckets
        reduced.clear()
        wrapped.zero_grad()
        seen = []
        with model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0]))):
            cdn.joint_step(wrapped, Y, LABELS, sigma, NOISE)
        assert seen == [1, 1] and sum(reduced) == sum(p.numel() for p in model.parameters())
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, expected[name])
