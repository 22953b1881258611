"""``python -m cdn.train``: train a network that classifies and denoises."""

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
from cdn.cli.arguments import pick_device
from cdn.cli.training import training_parser
from cdn.errors import CDNError
from cdn.processes import Processes, joined
from cdn.run_folder.config import read_config
from cdn.run_folder.names import CONFIG, PICTURES
from cdn.training.initial import settings_like
from cdn.training.settings import FREE, UNWRITTEN, Settings
from cdn_kernels.info import hardware

PATIENCE = 60.0  # seconds that a run waits for the end of the processes that it had before it was started again


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command; return its exit status, None where all is well."""
    arguments = vars(training_parser().parse_args(argv))
    # Where torchrun started several, each needs its device to meet the others.
    with joined(pick_device(arguments.get("device", Settings.device))) as processes:
        return _train(arguments, processes)


def _train(arguments: dict[str, Any], processes: Processes) -> int | None:
    run, resume = arguments.pop("out"), arguments.pop("resume")
    how = {name: arguments.pop(name) for name in ("download", "profile")}
    elastic = _restarts(run, resume)
    resume = resume or (elastic and processes.of_first(lambda: (run / CONFIG).exists()))
    if resume:
        run = _resumed_folder(run, resume)
        settings = processes.of_first(lambda: _resumed_settings(run, arguments))
    else:

        def begun() -> Settings:
            return Settings(**((settings_like(arguments["init"]) if arguments.get("init") else {}) | arguments))

        settings = processes.together(begun)
    device = pick_device(settings.device)
    reason = settings.why_not_fused(device) if settings.fused is None else None
    settings = processes.of_first(lambda: settings.decided(device))
    print("kernels: " + kernels_text(processes.together(lambda: settings.backends(device)), device, reason))
    if settings.fused:
        cdn_kernels.keep_pages()

    from cdn.training.loop import train

    made = None
    if run is None:
        dated = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
        run = made = processes.of_first(lambda: new_folder(Path("runs") / dated))
    how |= dict(processes=processes, patience=PATIENCE if elastic else 0.0)
    try:
        result = train(settings, run, device, resume=bool(resume), **how)
    finally:
        with contextlib.suppress(OSError):  # where there is something in it
            if made and processes.first:
                made.rmdir()
    if result is None:
        return 130
    print(f"{run}: " + summary(result))
    pictures = " and ".join(str(run / name) for name in PICTURES if (run / name).exists())
    look = f"look at {pictures}; more" if pictures else "more"
    print(f"{look} figures with: {shlex.join(['python', '-m', 'cdn.evaluate', str(run)])}")
    return None


def kernels_text(backends: Mapping[str, str], device: torch.device, reason: str | None) -> str:
    """Return in words whose kernels run.

    Args:
        backends: by operation; none for plain PyTorch.
        device: where.
        reason: why no other kernels run, if that is what decided it.
    """
    if not backends:
        return "plain PyTorch" + (f", because {reason}" if reason else "")
    names = list(dict.fromkeys(backends.values()))
    if len(names) == 1:
        return f"{names[0]} ({hardware(device)})"
    used = (f"{name} for {', '.join(op for op in backends if backends[op] == name)}" for name in names)
    return f"{'; '.join(used)} ({hardware(device)})"


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


def _restarts(run: Path | None, resume: str | Literal[True] | None) -> bool:
    """Say whether torchrun starts this command again if a process ends, and a run that is there is to go on.

    Raises:
        CDNError: the run would not be found again.
    """
    restarts = "RANK" in os.environ and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") not in ("", "0")
    if restarts and run is None and not resume:
        raise CDNError("--out: name the run folder, in which torchrun --max-restarts can go on")
    return restarts and run is not None


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
    config = read_config(run)
    stored = UNWRITTEN | config.training
    if stored.get("data") == "imagefolder" and stored.get("image_size") is None:  # as it was once left open
        stored["image_size"] = config.image_side
    for name, value in arguments.items():
        if name in FREE:
            stored[name] = value
        elif stored.get(name) != value:
            raise CDNError(
                f"{run} was started with {name} = {stored.get(name)!r} and cannot be resumed with "
                f"{value!r}: leave the option out, or start a new run"
            )
    return Settings.from_dict(stored)
