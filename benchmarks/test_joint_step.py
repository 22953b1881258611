"""The training step, the heart of the library, against what a user would run instead; and the score alone."""

from dataclasses import replace

import pytest

from benchmarks.peers import PEERS
from benchmarks.peers.compiled import CompiledScore
from benchmarks.peers.plain_compile import CompiledClassifier
from benchmarks.steps import EAGER, Score, SixUnits, Step

PROBLEMS = {
    "bf16": dict(),
    "float32": dict(precision="float32"),
    "yardstick": dict(yardstick=True),
    "yardstick-float32": dict(yardstick=True, precision="float32"),
    "batch16": dict(batch=16),
    "batch256": dict(batch=256),
    "width32": dict(width=32),
    "depth34": dict(depth=34, precision="float32"),  # in bf16, half of the gradient would be rounding
    "side64": dict(batch=32, side=64),
}


def problems(first, *default):
    """Return the mark that gives a test its problems: one of a smoke run, others of the default set, and all."""
    marks = {first: (), **dict.fromkeys(default, pytest.mark.no_smoke)}
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks.get(name, pytest.mark.full)) for name in PROBLEMS]
    )


@problems("float32", "bf16")
def test_joint_step(compare, settings, name):
    problem = settings.problem(**PROBLEMS[name])
    peers = {name: (Step, problem, options) for name, options in EAGER.items()}
    if name == "float32" and not settings.full:
        peers = dict([*peers.items()][:1])
    else:
        peers |= {
            "(eager step of a classifier)": (Step, problem, dict(denoising=0.0, keep_pages=True)),
            "(its convolutions alone, by PyTorch)": (SixUnits, problem, dict(keep_pages=True)),
        }
    # On CPUs they compile for minutes and gain nothing, see test_every_peer.
    if settings.device == "cuda" and name != "float32":
        peers |= {
            "compiled": (PEERS["compiled"], problem, {}),
            "(compiled step of a classifier)": (CompiledClassifier, problem, {}),
        }
    compare("joint step", problem, Step, peers, SixUnits(problem))


@pytest.mark.parametrize("precision", ["bf16", pytest.param("float32", marks=pytest.mark.full)])
def test_clean_images(compare, settings, precision):
    """Half of the images clean, as in the recipe of CIFAR-10; the peers spare them the score as the library does."""
    problem = settings.problem(precision=precision, yardstick=True, clean_share=0.5)
    whole = replace(problem, clean="independent")
    peers = {
        "(this library, clean images as noisy ones)": (Step, whole, settings.library, dict(keep_pages=True)),
        **{name: (Step, problem, options) for name, options in EAGER.items()},
        "(eager step of a classifier)": (Step, problem, dict(denoising=0.0, keep_pages=True)),
    }
    compare("joint step, half clean", problem, Step, peers)


@pytest.mark.no_smoke
@pytest.mark.parametrize(
    "size, precision",
    [
        ("small", "bf16"),
        *(
            pytest.param(*case, marks=pytest.mark.full)
            for case in (("small", "float32"), ("default", "bf16"), ("default", "float32"))
        ),
    ],
)
def test_every_peer(compare, settings, size, precision):
    """All that could take the place of the library's step, on the network that every framework has."""
    small = dict(width=32, batch=32) if size == "small" and settings.device == "cpu" else {}
    problem = settings.problem(precision=precision, yardstick=True, **small)
    peers = {name: (Step, problem, options) for name, options in EAGER.items()}
    compare(
        "joint step, all peers",
        problem,
        Step,
        peers | {name: (peer, problem, {}) for name, peer in PEERS.items() if settings.full or not peer.full},
        SixUnits(problem),
    )


@problems("bf16")
def test_score(compare, settings, name):
    problem = settings.problem(**PROBLEMS[name])
    peers = {name: (Score, problem, options) for name, options in EAGER.items()}
    if settings.device == "cuda":
        peers["compiled"] = CompiledScore, problem, {}
    compare("score", problem, Score, peers)
