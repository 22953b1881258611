"""A whole run: steps, evaluations, checkpoints, and what is left in the run folder at the end."""

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import cdn_kernels
from cdn.data import Dataset, Subset, balanced_indices, load_dataset, steps_per_epoch
from cdn.density import calibrate
from cdn.errors import CDNError, CheckpointError, DataError, DivergedError
from cdn.evaluation import chains_picture, curves_picture, denoising_picture, evaluate
from cdn.evaluation.evaluate import Report
from cdn.model import GradResNet, Network
from cdn.store import CONFIG, METRICS, WEIGHTS, save_config, save_model
from cdn.training.checkpoint import STATE, load_state, save_state
from cdn.training.log import Averages, MetricsFile, Progress
from cdn.training.profile import profile_steps
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer
from cdn_kernels import Noise

# Evaluations on the way use this many test images; the one at the end uses all.
QUICK = dict(limit=1000, denoising_limit=256)
FINAL = dict(denoising_limit=1024)
BATCH_SIZE = 256


def train(
    settings: Settings,
    run: str | Path,
    device: torch.device,
    *,
    resume: bool = False,
    download: bool = False,
    profile: bool = False,
    show: bool | None = None,
) -> Report | None:
    """Train a model and leave a complete run folder.

    Args:
        settings: a :class:`cdn.training.settings.Settings`.
        run: the run folder, created if needed.
        device: where to train.
        resume: continue from the last checkpoint of the run.
        download: fetch the data set if it is missing.
        profile: measure time and bytes of the phases of a step before training, print them, and write
            ``profile.json``.
        show: True or False for a progress bar; None for one on terminals.

    Returns:
        The last evaluation, or None if the run was interrupted (its state is saved).

    Raises:
        CDNError: bad data, a full disk, a damaged checkpoint, or a run that diverged; what was saved is intact.
    """
    run = Path(run)
    dataset = load_dataset(settings.data, settings.data_dir, download=download, image_size=settings.image_size)
    if settings.data == "imagefolder":
        settings = replace(settings, image_size=dataset.shape[-1])  # recorded, even if it was left to the images
    if settings.train_images is not None:
        chosen = balanced_indices(dataset.train.labels, settings.train_images, settings.seed)
        dataset = replace(dataset, train=Subset(dataset.train, chosen))
    per_epoch = steps_per_epoch(len(dataset.train), settings.batch_size)
    steps = settings.total_steps(per_epoch)
    progress: Progress  # made when it is known where the run begins
    trainer = Trainer(settings, dataset, steps, device, say=lambda text: progress.say(text))
    # A run that was killed before its first checkpoint resumes from its beginning.
    state = load_state(run, device) if resume and (run / STATE).exists() else None
    if state:
        _restore(trainer, state, run)
    elif not resume:
        _create(run)
        save_config(run, _config(settings, dataset, trainer.model, steps))
    metrics = MetricsFile(run, state["metrics_bytes"] if state else None)
    elapsed = state["seconds"] if state else 0.0
    start = time.perf_counter() - elapsed
    evaluate_every = max(steps // settings.evaluations, 1)
    progress = Progress(steps, trainer.step, show)
    averages = Averages()
    batch_size = BATCH_SIZE
    if settings.crop_size:
        # Whole images are larger than the crops of training: as many pixels at a time, in fewer images.
        batch_size = max(batch_size * settings.crop_size**2 // math.prod(dataset.shape[1:]), 1)

    def save() -> None:
        save_state(run, dict(trainer.state(), metrics_bytes=metrics.sync(), seconds=time.perf_counter() - start))
        save_model(run / WEIGHTS, trainer.average, dataset.classes)

    def measure(limits: Mapping[str, Any]) -> Report:
        with cdn_kernels.using(trainer.impl):
            result = evaluate(
                trainer.average,
                dataset.test,
                levels=settings.levels,
                precision=settings.precision,
                batch_size=batch_size,
                objective=settings.objective,
                **limits,
            )
        row = dict(kind="evaluation", step=trainer.step, seconds=time.perf_counter() - start, **result)
        metrics.write(**row)
        progress.update(row)
        return result

    progress.say(
        f"{run}: {settings.model} of width {settings.width} "
        f"({sum(p.numel() for p in trainer.model.parameters()):,} parameters), {settings.objective}, "
        f"on {len(dataset.train):,} images of {settings.data}; {steps:,} steps of {settings.batch_size} "
        f"on {device}" + (f", from step {trainer.step:,}" if trainer.step else "")
    )
    try:
        if profile:
            profile_steps(trainer, run / "profile.json", progress.say)
        last_save = time.perf_counter()
        with _stop_requests() as stop:
            while trainer.step < steps and not stop:
                averages.add(settings.batch_size, trainer.advance())
                progress.advance()
                done = trainer.step
                if done % settings.log_every == 0 or done == steps:
                    skipped = trainer.health.check()
                    row = averages.take()
                    metrics.write(
                        kind="train",
                        step=done,
                        epoch=done / per_epoch,
                        skipped=skipped,
                        learning_rate=float(trainer.rate),
                        seconds=time.perf_counter() - start,
                        **row,
                    )
                    progress.update(row)
                if done % evaluate_every == 0 and done < steps:
                    measure(QUICK)
                if time.perf_counter() - last_save > settings.checkpoint_seconds:
                    save()
                    last_save = time.perf_counter()
        if trainer.step < steps:
            save()
            progress.say(f"stopped at step {trainer.step} of {steps}; go on with: python -m cdn.train --resume {run}")
            return None
        denoises = settings.objective in ("joint", "denoising")
        if isinstance(trainer.average, GradResNet) and denoises:
            images, _ = dataset.train.load(torch.arange(min(len(dataset.train), 256)))
            calibrate(trainer.average, images.to(device).float().div(255), Noise(settings.seed), batch_size)
        save()
        result = measure(FINAL)
        if denoises:
            denoising_picture(
                trainer.average,
                dataset.test,
                run / "denoising.png",
                classes=dataset.classes,
                precision=settings.precision,
            )
        if trainer.jem:
            chains_picture(trainer.jem.chains, run / "chains.png")
        curves_picture(run / METRICS, run / "curves.png")
        return result
    except (DataError, DivergedError):
        # An unreadable image stops before a step and skipped steps change nothing: the trainer holds a good state.
        save()
        raise
    finally:
        progress.close()
        metrics.close()


def _create(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CDNError(f"cannot create the run folder {run}: {error.strerror}") from None
    if (run / CONFIG).exists():
        raise CDNError(f"{run} already holds a run: continue it with --resume {run}, or choose another --out")


def _restore(trainer: Trainer, state: dict[str, Any], run: Path) -> None:
    try:
        trainer.restore(state)
    except (KeyError, ValueError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the checkpoint in {run} does not fit its {CONFIG}: {cause}") from None


def _config(settings: Settings, dataset: Dataset, model: Network, steps: int) -> dict[str, Any]:
    """Return what ``config.json`` says: how to repeat the run, and what a reader of the model needs."""
    return dict(
        cdn=cdn_kernels.__version__,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        data=dict(
            name=settings.data,
            data_dir=settings.data_dir,
            image_size=settings.image_size,
            train_images=len(dataset.train),
            test_images=len(dataset.test),
            shape=list(dataset.shape),
        ),
        classes=list(dataset.classes),
        model=model.config,
        parameters=sum(p.numel() for p in model.parameters()),
        total_steps=steps,
        training=settings.as_dict(),
    )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list, so that a step is never torn; a second Ctrl-C stops at once."""
    requests: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if requests and number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.append(number)

    try:
        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are someone else's business
        previous = {}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
