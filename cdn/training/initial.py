"""Training that starts from the weights of another run: fine-tuning, or more epochs for a finished one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cdn.errors import CDNError
from cdn.model import Network
from cdn.run_folder.weights import load
from cdn.training.settings import BLOCKS

# Options of a network that decide the shapes of its weights or what they mean; each is a setting too.
SHAPING = ("width", "stem", "head", "norm", "homogeneous")
# The layers that know classes. Of what is left out, calibration follows at the end of every training.
CLASSES = ("head.classes.weight", "logits.weight", "logits.bias")
CALIBRATION = ("calibration_sigma", "calibration_mean_square")


def settings_like(path: str | Path) -> dict[str, Any]:
    """Return the settings of a network that takes the weights of another, by name.

    Args:
        path: a run, a file of weights, or the name of a model that comes with the package.

    Raises:
        CheckpointError: it cannot be read.
        CDNError: a network that no setting names.
    """
    config = load(path).config
    blocks, kind = tuple(config["blocks"]), config["kind"]
    names = [name for name, of_name in BLOCKS.items() if name.startswith(kind) and of_name == blocks]
    if not names:
        raise CDNError(f"--init: {path} has {list(blocks)} blocks in its stages, which no --model has")
    return dict(model=names[0]) | {name: config[name] for name in SHAPING if name in config}


def take_weights(model: Network, classes: Sequence[str], path: str | Path) -> str:
    """Give a network the weights of another, and say in a sentence what was taken.

    What maps features to classes stays fresh where the classes are others.

    Args:
        model: takes the weights, its own shapes untouched.
        classes: the names of its classes.
        path: where the others are, as of :func:`settings_like`.

    Raises:
        CheckpointError: they cannot be read.
        CDNError: they do not fit; the network is as it was.
    """
    given = load(path)
    mine, theirs = model.config, given.config
    if mine["kind"] != theirs["kind"]:
        raise CDNError(f"--init: {path} is a {theirs['kind']}, expected a {mine['kind']}, as --model says")
    if mine["in_channels"] != theirs["in_channels"]:
        raise CDNError(
            f"--init: {path} takes images of {theirs['in_channels']} channels, and those of the data have "
            f"{mine['in_channels']}"
        )
    fresh = CLASSES if tuple(classes) != given.classes else ()
    taken = {name: t for name, t in given.state_dict().items() if name not in (*fresh, *CALIBRATION)}
    own = model.state_dict()
    expected = own.keys() - {*fresh, *CALIBRATION}
    for name in sorted(expected | taken.keys()):
        shapes = [list(state[name].shape) if name in state else None for state in (taken, own)]
        if shapes[0] != shapes[1]:
            raise CDNError(
                f"--init: {path} does not fit: {name} is {shapes[0]}, expected {shapes[1]}; leave out --model and the "
                "other options of the network, which follow the weights then"
            )
    if other := next((name for name in SHAPING if mine.get(name) != theirs.get(name)), None):
        raise CDNError(f"--init: {path} has {other} {theirs[other]!r}, expected {mine[other]!r}")
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    left = [name for name in fresh if name in own]
    return f"weights of {path}" + (f"; fresh: {', '.join(left)}, for other classes" if left else "")
