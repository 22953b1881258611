"""``python -m cdn.train``: train a network that classifies and denoises."""

import argparse
import contextlib
import datetime
import itertools
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

import cdn_kernels
from cdn.cli.arguments import (
    PRECISIONS,
    fraction,
    grey,
    nonnegative_float,
    pick_device,
    positive_float,
    positive_int,
    seed_number,
    whole_number,
)
from cdn.errors import CDNError
from cdn.model.gradresnet import NORMS, STEMS
from cdn.model.head import HEADS
from cdn.run_folder.weights import image_side, load_config
from cdn.training.jem import STARTS
from cdn.training.recipe import OPTIMIZERS
from cdn.training.settings import BLOCKS, FREE, JEM, KERNELS, OBJECTIVES, RECIPES, Settings
from cdn_kernels.noise import HIGHEST_LEVEL

EXAMPLES = """examples:
  python -m cdn.train                                   the bundled handwritten digits, a minute or two on a CPU
  python -m cdn.train --data cifar10 --data-dir data --download --precision bf16
  python -m cdn.train --data imagefolder --data-dir photos --image-size 64 --crop-size 56
  python -m cdn.train --objective jem --model gradresnet18 --data cifar10 --data-dir data
  python -m cdn.train --resume runs/2026-01-31-120000   go on after an interruption, bit for bit on a CPU
"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser; every option that belongs to the run is a field of Settings of the same name."""
    parser = argparse.ArgumentParser(
        prog="python -m cdn.train",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train one network f(y)_c = log p(y, c) on noisy images, so that softmax classifies them and the "
        "input\ngradient of logsumexp denoises them. Defaults marked * depend on the data set.",
    )
    defaults = Settings()

    def option(group: argparse._ArgumentGroup, name: str, text: str, **kwargs: Any) -> None:
        default = getattr(Settings, name)
        mark = "*" if default is None and name in RECIPES["digits"] else ""
        shown = "" if default is None and not mark else f" (default: {getattr(defaults, name)}{mark})"
        group.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=text + shown, **kwargs)

    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, metavar="RUN", help="run folder (default: a dated one under runs/)")
    run.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="RUN",
        help="continue RUN (or --out) from its last checkpoint, with the settings it was started with",
    )
    run.add_argument(
        "--profile", action="store_true", help="first measure the time and the bytes of each phase of a step"
    )
    option(
        run,
        "fused",
        "train with the compiled kernels, on a GPU as a CUDA graph; stops if they cannot run",
        action=argparse.BooleanOptionalAction,
    )
    option(run, "impl", "whose kernels --fused runs; auto: the fastest", choices=KERNELS)
    option(run, "device", "auto, cpu, cuda or cuda:N")
    option(run, "precision", "bf16: convolutions in bfloat16, everything delicate in float32", choices=PRECISIONS)
    option(run, "seed", "of weights, batches, augmentation and noise", type=seed_number)
    option(run, "log_every", "steps between rows of metrics.jsonl", type=positive_int)
    option(run, "evaluations", "evaluations over the run", type=positive_int)
    option(run, "checkpoint_seconds", "longest time between checkpoints", type=nonnegative_float)

    data = parser.add_argument_group("data")
    option(
        data, "data", "digits (bundled with scikit-learn), cifar10, or imagefolder (split/class/*.jpg)", choices=RECIPES
    )
    option(data, "data_dir", "folder of the data set", metavar="DIR")
    data.add_argument("--download", action="store_true", help="fetch and check the official CIFAR-10 archive")
    option(
        data,
        "image_size",
        "side of the squares that image folders are resized to; left out, their own, if all have one",
        type=positive_int,
    )
    option(
        data,
        "train_images",
        "train on so many images only, chosen at random, the classes in proportion",
        type=positive_int,
    )
    option(data, "batch_size", "images per step", type=positive_int)
    option(data, "crop_padding", "random translation by up to this many pixels", type=whole_number)
    option(data, "crop_size", "train on random crops of this side", type=positive_int)
    option(data, "flip", "mirror images at random", action=argparse.BooleanOptionalAction)

    model = parser.add_argument_group("model")
    option(
        model,
        "model",
        "the joint GradResNet, or a baseline: resnet* only classifies, denoiser* only denoises",
        choices=BLOCKS,
    )
    option(model, "width", "channels of the first stage, a multiple of 8", type=positive_int)
    option(model, "stem", "imagenet: reduce the resolution by 4 first", choices=STEMS)
    option(
        model,
        "head",
        "how the density comes out of the features (default: log-energy; linear for jem, which takes no other)",
        choices=HEADS,
    )
    option(model, "norm", "group normalization that keeps the scale of its input, or not", choices=NORMS)
    option(model, "homogeneous", "make the score exactly homogeneous in the centred image", action="store_true")

    option(
        model,
        "mean",
        "value that the model subtracts from images; where there is none, the mean of each channel "
        "of the training images)",
        type=nonnegative_float,
    )

    goal = parser.add_argument_group("objective")
    option(
        goal,
        "objective",
        "which of the two terms to train on (default: both, if the model can), or jem: for "
        "comparison, a joint energy model, whose density is learned from samples of its own",
        choices=OBJECTIVES,
    )
    goal.add_argument(
        "--lambda",
        dest="denoising_weight",
        type=nonnegative_float,
        default=argparse.SUPPRESS,
        metavar="L",
        help=f"weight of denoising score matching against cross-entropy (default: {defaults.denoising_weight}*)",
    )
    goal.add_argument(
        "--final-lambda",
        dest="final_denoising_weight",
        type=nonnegative_float,
        default=argparse.SUPPRESS,
        metavar="L",
        help="value that lambda moves to, linearly over the run (default: it stays)",
    )
    option(goal, "sigma_law", "distribution of the noise level", choices=cdn_kernels.noise.LAWS)
    option(goal, "sigma_low", "lowest noise level, in units of images in [0, 1]", type=positive_float)
    option(goal, "sigma_high", "highest noise level, or the only one", type=positive_float)
    option(goal, "clean_share", "share of images that are left without noise", type=fraction)
    option(goal, "label_smoothing", "of the cross-entropy", type=fraction)

    jem = parser.add_argument_group(
        "joint energy model (--objective jem)",
        "Lengths are those of images in [-1, 1], as in the paper. Unless they are given, "
        f"the head is linear and the learning rate on digits "
        f"{JEM['digits']['learning_rate']}.",
    )
    option(
        jem,
        "jem_start",
        "what chains start from: a normal distribution with the mean and covariance of images, or "
        "uniform noise, as in the paper",
        choices=STARTS,
    )
    option(jem, "jem_steps", "Langevin steps of a chain per training step", type=positive_int)
    option(jem, "jem_step_size", "factor of the score in a Langevin step", type=positive_float)
    option(jem, "jem_noise", "deviation of the noise of a Langevin step", type=nonnegative_float)
    option(jem, "jem_input_noise", "deviation of the noise that training images get", type=nonnegative_float)
    option(jem, "jem_buffer", "most chains that are kept; never more than training images", type=positive_int)
    option(jem, "jem_restart", "probability that a chain starts afresh", type=fraction)

    recipe = parser.add_argument_group("recipe")
    option(recipe, "epochs", "passes over the training images", type=positive_int)
    option(recipe, "steps", "length in steps instead of epochs", type=positive_int)
    option(
        recipe,
        "optimizer",
        "muon: orthogonalized momentum for the filters between features, AdamW for all else",
        choices=OPTIMIZERS,
    )
    option(recipe, "learning_rate", "peak of the cosine schedule", type=positive_float)
    option(recipe, "warmup", "steps of linear warm-up", type=whole_number)
    option(recipe, "weight_decay", "on filters and matrices", type=nonnegative_float)
    option(recipe, "clip", "largest norm of the gradient; 0: do not clip", type=nonnegative_float)
    option(recipe, "ema", "decay of the average of the weights, which is what the run delivers", type=fraction)
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command; return its exit status, None where all is well."""
    arguments = vars(make_parser().parse_args(argv))
    _require_one_process()
    run, resume = arguments.pop("out"), arguments.pop("resume")
    how = {name: arguments.pop(name) for name in ("download", "profile")}
    if resume:
        run = _resumed_folder(run, resume)
        settings = _resumed_settings(run, arguments)
    else:
        settings = Settings(**arguments)
    high = settings.sigma_high
    if high > HIGHEST_LEVEL:
        print(f"note: --sigma-high {high:g} is in the units of images in [0, 1]; {grey(high)}")
    device = pick_device(settings.device)
    if settings.fused:
        _announce_fused(settings, device)
        cdn_kernels.keep_pages()

    from cdn.training.loop import (
        PICTURES,
        train,
    )  # here, because plotting libraries take a second that --help need not wait for

    made = None
    if run is None:
        run = made = new_folder(Path("runs") / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S"))
    try:
        result = train(settings, run, device, resume=bool(resume), **how)
    finally:
        with contextlib.suppress(OSError):  # where there is something in it
            if made:
                made.rmdir()
    if result is None:
        return 130
    print(f"{run}: " + summary(result))
    pictures = " and ".join(str(run / name) for name in PICTURES if (run / name).exists())
    look = f"look at {pictures}; more" if pictures else "more"
    print(f"{look} figures with: {shlex.join(['python', '-m', 'cdn.evaluate', str(run)])}")
    return None


def new_folder(path: Path) -> Path:
    """Make a folder that was not there, PATH or else PATH-2, PATH-3 and so on, and return its path.

    Raises:
        CDNError: it cannot be made.
    """
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not path.parent.is_dir():
                raise CDNError(f"--out: {path} cannot be made: {path.parent} is no folder") from None
        except OSError as error:
            raise CDNError(f"--out: {path} cannot be made a folder: {error.strerror}") from None
    raise AssertionError


def _require_one_process() -> None:
    """Raise CDNError where torchrun, or a like of it, started this process among others."""
    count = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and count.isdecimal() and int(count) > 1:
        raise CDNError(
            f"training runs in one process, and this is one of {count} (WORLD_SIZE): start it once, without torchrun"
        )


def summary(result: Mapping[str, float | None]) -> str:
    """Return one line with what an evaluation found."""
    parts = []
    if result["accuracy"] is not None:
        parts.append(f"test accuracy {result['accuracy']:.2%}")
    if result["psnr_50"] is not None:
        parts.append(f"denoising loss {result['denoising_loss']:.3f}")
        parts.append(f"PSNR at sigma 50/255 {result['psnr_50']:.2f} dB (noisy: {result['psnr_noisy_50']:.2f} dB)")
    return ", ".join(parts)


def _resumed_folder(out: Path | None, resume: str | Literal[True]) -> Path:
    if resume is True:
        if out is None:
            raise CDNError("--resume: name the run folder, as --resume RUN or with --out RUN")
        return out
    if out is not None and out != Path(resume):
        raise CDNError(f"--resume {resume} and --out {out} name different runs: give one")
    return Path(resume)


def _resumed_settings(run: Path, arguments: Mapping[str, Any]) -> Settings:
    """Return the settings a run was started with; what is given again has to agree, or be free to change."""
    config = load_config(run)
    stored = config.get("training", {})
    if stored.get("data") == "imagefolder" and stored.get("image_size") is None:  # as it was once left open
        stored["image_size"] = image_side(config)
    for name, value in arguments.items():
        if name in FREE:
            stored[name] = value
        elif stored.get(name) != value:
            raise CDNError(
                f"{run} was started with {name} = {stored.get(name)!r} and cannot be resumed with "
                f"{value!r}: leave the option out, or start a new run"
            )
    return Settings.from_dict(stored)


def _announce_fused(settings: Settings, device: torch.device) -> None:
    from cdn_kernels.backends.dispatch import fused_backends

    try:
        found = fused_backends(device, settings.impl, torch.bfloat16 if settings.precision == "bf16" else torch.float32)
    except RuntimeError as error:
        raise CDNError(f"--fused: {error}") from None
    for backend in dict.fromkeys(found.values()):
        print(f"fused, by the {backend} kernels: {', '.join(name for name in found if found[name] == backend)}")
