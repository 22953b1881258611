"""No two uses of a seed ever see the same numbers: streams are disjoint, and every use stays within its own."""

import ast
from itertools import combinations, product
from pathlib import Path

import pytest
import torch

import cdn
from cdn import noise_keys
from cdn.commands import train
from cdn.data.split import MemorySplit
from cdn.evaluation import evaluate
from cdn.methods.attacks.losses import cross_entropy
from cdn.methods.attacks.pursuit import Pursuit
from cdn.methods.attacks.sweep import sweep
from cdn.methods.distances.dissimilarity import information
from cdn.methods.judges import is_right
from cdn.methods.prior.draw import SET, ascent, draw_samples
from cdn.methods.prior.inverse_problems import restore_several
from cdn.methods.prior.operators import Inpainting
from cdn.methods.smoothing import LevelVote
from cdn.methods.smoothing.randomized import Randomized
from cdn.methods.spectrum.denoiser_jacobian import Jacobian, probe
from cdn.noise_keys import AUGMENTATION, CHAINS, ORDER, POSITIONS, REPLAY, SUBSET, Draws, Stream
from tests.runs import TINY_JEM

SEED = 12345
STREAMS = {name: value for name, value in vars(noise_keys).items() if isinstance(value, Stream)}
DRAWS = {name: value for name, value in vars(noise_keys).items() if isinstance(value, Draws)}
# Where a key may be made of a number: everywhere else it comes from a stream, or from a key that was given.
MADE = {"cdn/noise_keys.py": 2}
# Where generators of torch are seeded: those of the table, and the global one before a network gets its first weights.
SEEDED = {"cdn/noise_keys.py": 1, "cdn/training/trainer.py": 1}


def holds(stream, position):
    return stream.first <= position < stream.first + stream.size


def test_streams_are_disjoint_and_within_the_positions_of_a_seed():
    assert len(STREAMS) == 14
    for one, other in combinations(STREAMS.values(), 2):
        assert one.first + one.size <= other.first or other.first + other.size <= one.first
    for stream in STREAMS.values():
        assert stream.size > 0 and stream.first >= 0 and stream.first + stream.size <= POSITIONS
        assert holds(stream, stream.key(3).offset) and holds(stream, stream.key(3, stream.size - 1).offset)
        with pytest.raises(ValueError, match="position: expected one of the"):
            stream.key(3, stream.size)
        with pytest.raises(ValueError, match="position: expected one of the"):
            stream.key(3, -1)


def test_positions_that_may_not_move():
    """Training, evaluation, joint energy models, probes and certificates draw what version 0.1.0 drew."""
    first = {name: STREAMS[name].first for name in ("TRAINING", "EVALUATION", "JEM", "PROBES", "CERTIFICATION")}
    assert first == dict(TRAINING=0, EVALUATION=2**62, JEM=2**61, PROBES=2**62 + 2**32, CERTIFICATION=3 * 2**61)


def test_draws_on_the_cpu_are_told_apart_by_stream_seed_and_position():
    assert len({stream.name for stream in DRAWS.values()}) == len(DRAWS) == 14
    keys = list(product(DRAWS.values(), (0, 1, 1 << 32, (1 << 64) - 1), (0, 1, 1 << 32)))
    first = {tuple(torch.rand(3, generator=stream.generator(*key)).tolist()) for stream, *key in keys}
    assert len(first) == len(keys)
    for stream, *key in keys[:: len(keys) // 7]:
        again = [torch.rand(3, generator=stream.generator(*key)) for _ in range(2)]
        assert torch.equal(*again)


def test_draws_that_may_not_move():
    """The batches of a training, and the chains of joint energy models, are those of version 0.1.0."""
    drawn = [
        torch.randint(1000, (2,), generator=stream.generator(3, 2)).tolist()
        for stream in (ORDER, SUBSET, AUGMENTATION, CHAINS, REPLAY)
    ]
    assert drawn == [[770, 789], [144, 822], [464, 855], [354, 54], [822, 80]]


def calls_by_file(chosen):
    """Return how many calls in each file of cdn are chosen by a function of the node and its name."""
    found, root = {}, Path(cdn.__file__).parents[1]
    for path in root.glob("cdn/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and chosen(node, getattr(node.func, "id", getattr(node.func, "attr", ""))):
                name = path.relative_to(root).as_posix()
                found[name] = found.get(name, 0) + 1
    return found


def test_keys_are_made_of_streams_or_of_other_keys():
    given = lambda node: ast.unparse(node.args[0]).endswith(".seed") or "self.number" in ast.unparse(node)
    assert calls_by_file(lambda node, name: name == "Noise" and not given(node)) == MADE


def test_generators_of_torch_are_seeded_in_the_table():
    assert calls_by_file(lambda node, name: name in ("manual_seed", "default_rng", "RandomState")) == SEEDED


@pytest.fixture
def drawn(monkeypatch):
    """A list of the positions of SEED of which keys are made."""
    positions, check = [], cdn.Noise.__post_init__

    def note(self):
        check(self)
        if self.seed == SEED:
            positions.append(int(self.offset))

    monkeypatch.setattr(cdn.Noise, "__post_init__", note)
    return positions


def model():
    return cdn.gradresnet_small(4, 1, width=8).eval()


X, LABELS = torch.rand(5, 1, 8, 8), torch.arange(5) % 4
USES = {
    "CALIBRATION": lambda: cdn.calibrate(model(), X, noise_keys.CALIBRATION.key(SEED)),
    "EVALUATION": lambda: evaluate(
        model(), MemorySplit((255 * torch.rand(600, 1, 4, 4)).to(torch.uint8), torch.arange(600) % 4), seed=SEED
    ),
    "CERTIFICATION": lambda: cdn.certify(model(), X, 0.3, 5, 600, 0.3, seed=SEED),
    "REFERENCE": lambda: LevelVote(model(), model(), [0.1, 0.2], X, noise_keys.REFERENCE.key(SEED)),
    "SIMILARITY": lambda: cdn.similarity(
        model(), X, X.flip(2), nodes=3, draws=2, noise=noise_keys.SIMILARITY.key(SEED)
    ),
    "RECONSTRUCTION": lambda: information(model(), nodes=3, noise=noise_keys.RECONSTRUCTION.key(SEED))(X, X[:, None]),
    "PROBES": lambda: probe(Jacobian(model(), X, 0.2), 3, noise_keys.PROBES.key(SEED)),
    "SAMPLING": lambda: draw_samples(
        ascent(cdn.NoiseLevels(), step=0.1, beta=0.5, limit=4, progress=False),
        model(),
        (1, 8, 8),
        5,
        None,
        noise_keys.SAMPLING.key(SEED, 3 * SET),
        sigma=1.0,
        batch_size=2,
    ),
    "RESTORATION": lambda: restore_several(
        model(), Inpainting((1, 8, 8), 3), X, samples=2, seed=SEED, batch_size=3, bar=Bar(), limit=4
    ),
    "ATTACKS": lambda: Pursuit(
        Randomized(lambda x, key: model()(x), 3), X, LABELS, cross_entropy, noise=noise_keys.ATTACKS.key(SEED)
    )(X),
    "DECISIONS": lambda: is_right(Randomized(lambda x, key: model()(x), 3), X, LABELS, SEED, 2),
    "ATTACK_STARTS": lambda: sweep(
        model(), X, LABELS, "l2", [0.1, 0.2], ["pgd", "random-search"], steps=3, restarts=2, seed=SEED
    ),
}


class Bar:
    """A progress bar that no one sees."""

    def update(self):
        """Do nothing."""


@pytest.mark.parametrize("name", USES)
@torch.no_grad()
def test_every_use_stays_within_its_stream(name, drawn):
    USES[name]()
    assert drawn and all(holds(STREAMS[name], position) for position in drawn)


def test_a_training_draws_from_its_own_streams(drawn, tmp_path):
    """The evaluations of a training have a seed of their own."""
    train.main(f"{TINY_JEM} --seed {SEED} --out {tmp_path / 'jem'}".split())
    used = {next(name for name, stream in STREAMS.items() if holds(stream, position)) for position in drawn}
    assert used == {"TRAINING", "JEM"}
    drawn.clear()
    train.main(f"--width 8 --steps 3 --batch-size 16 --evaluations 1 --seed {SEED} --out {tmp_path / 'joint'}".split())
    used = {next(name for name, stream in STREAMS.items() if holds(stream, position)) for position in drawn}
    assert used == {"TRAINING", "CALIBRATION"}
