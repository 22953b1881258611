"""The training of a run: steps, evaluations, checkpoints, and the files at its end."""

import math
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import cdn_kernels
from cdn.data import Dataset, Fingerprint, Subset, balanced_indices, fingerprint, load_dataset, steps_per_epoch
from cdn.errors import CDNError, CheckpointError, DataError, DivergedError, NotFiniteError
from cdn.evaluation import evaluate
from cdn.evaluation.evaluate import Report
from cdn.files import make_folder, sweep
from cdn.model import Network
from cdn.model.capabilities import has_density
from cdn.model.density import calibrate
from cdn.noise_keys import CALIBRATION
from cdn.pictures.denoising import chains_picture, denoising_picture
from cdn.pictures.plots import curves_picture
from cdn.pictures.style import attempt
from cdn.run_folder.config import RunConfig, write_config
from cdn.run_folder.data_identity import note_data, require_same_data, write_fingerprint
from cdn.run_folder.forms import misfit
from cdn.run_folder.journal import Journal
from cdn.run_folder.lock import locked
from cdn.run_folder.names import CONFIG, DATA, METRICS, PICTURES, PREVIOUS, PROFILE, STATE, WEIGHTS
from cdn.run_folder.state import has_state, load_state, save_state
from cdn.run_folder.weights import save_model
from cdn.training.profile import profile_steps
from cdn.training.progress import Averages, Progress
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer

# Evaluations on the way use this many test images; the one at the end uses all.
QUICK = dict(limit=1000, denoising_limit=256)
FINAL = dict(denoising_limit=1024)
BATCH_SIZE = 256
_PROGRESS = dict(metrics_bytes=int, seconds=float)  # what a checkpoint holds beside the state of the trainer


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
        CDNError: bad data, other data than that of the start, a full disk, a damaged checkpoint, a run that another
            process is training, or one that diverged; what was saved is intact.
    """
    run = Path(run)
    with ExitStack() as stack:
        if resume:
            stack.enter_context(locked(run))
        settings, dataset, found = _prepare(settings.decided(device), run, resume, download)
        steps = settings.total_steps(steps_per_epoch(len(dataset.train), settings.batch_size))
        progress: Progress  # made when it is known where the run begins
        trainer = Trainer(settings, dataset, steps, device, say=lambda text: progress.say(text))
        state = None
        begins = not (resume and has_state(run))
        taken = trainer.start_from(settings.init) if settings.init and begins else None
        if resume:
            # A run that was killed before its first checkpoint resumes from its beginning.
            state = load_state(run, device) if has_state(run) else None
            if state:
                _restore(trainer, state, run)
            note_data(run, settings.data_dir, found)
        else:
            make_folder(run)
            stack.enter_context(locked(run))
            if (run / CONFIG).exists():
                again = f"--resume {shlex.quote(str(run))}"
                raise CDNError(f"{run} already holds a run: continue it with {again}, or choose another --out")
            write_fingerprint(run, found)
            write_config(run, _config(settings, dataset, trainer.model, steps))
        sweep(run, STATE, PREVIOUS, WEIGHTS, CONFIG, DATA, *PICTURES, age=0)
        metrics = Journal(run / METRICS, state["metrics_bytes"] if state else 0)
        progress = Progress(steps, trainer.step, show)
        if taken:
            progress.say(taken)
        return _Training(trainer, run, metrics, progress, state["seconds"] if state else 0.0).complete(profile)


class _Training:
    """The part of a training from its first step, or the first after a checkpoint, to its end.

    Args:
        trainer: in the state to go on from.
        run: the run folder, which this process has locked.
        metrics, progress: the file of rows and the progress bar.
        elapsed: seconds of training before that state.
    """

    def __init__(self, trainer: Trainer, run: Path, metrics: Journal, progress: Progress, elapsed: float) -> None:
        self.trainer, self.run, self.metrics, self.progress = trainer, run, metrics, progress
        self.settings, self.dataset = trainer.settings, trainer.dataset
        self.start = time.perf_counter() - elapsed
        self.batch_size = BATCH_SIZE
        if self.settings.crop_size:
            # Whole images are larger than the crops of training: as many pixels at a time, in fewer images.
            pixels = math.prod(self.dataset.shape[1:])
            self.batch_size = max(self.batch_size * self.settings.crop_size**2 // pixels, 1)

    def complete(self, profile: bool) -> Report | None:
        """Train to the end, and return the last evaluation; None if a signal stopped it before."""
        trainer, say = self.trainer, self.progress.say
        self._announce()
        try:
            if profile:
                profile_steps(trainer, self.run / PROFILE, say)
            self._take_steps()
            if trainer.step < trainer.steps:
                self._save()
                again = shlex.join(["python", "-m", "cdn.train", "--resume", str(self.run)])
                say(f"stopped at step {trainer.step} of {trainer.steps}; go on with: {again}")
                result = None
            else:
                result = self._finish()
            if remark := trainer.health.remark(trainer.step):
                say(remark)
            return result
        except (DataError, DivergedError):
            # An unreadable image stops before a step and skipped steps change nothing: the trainer holds a good state.
            self._save()
            raise
        finally:
            self.progress.close()

    def _announce(self) -> None:
        settings, trainer = self.settings, self.trainer
        self.progress.say(
            f"{self.run}: {settings.model} of width {settings.width} "
            f"({sum(p.numel() for p in trainer.model.parameters()):,} parameters), {settings.objective}, "
            f"on {len(self.dataset.train):,} images of {settings.data}; {trainer.steps:,} steps of "
            f"{settings.batch_size} on {trainer.device}" + (f", from step {trainer.step:,}" if trainer.step else "")
        )

    def _take_steps(self) -> None:
        """Train until the last step, or until a signal asks to stop."""
        settings, trainer, averages = self.settings, self.trainer, Averages()
        evaluate_every = max(trainer.steps // settings.evaluations, 1)
        last_save = time.perf_counter()
        with _stop_requests() as stop:
            while trainer.step < trainer.steps and not stop:
                averages.add(settings.batch_size, trainer.advance())
                self.progress.advance()
                done = trainer.step
                if done % settings.log_every == 0 or done == trainer.steps:
                    self._log(averages.take())
                if done % evaluate_every == 0 and done < trainer.steps:
                    self._measure(QUICK)
                if time.perf_counter() - last_save > settings.checkpoint_seconds:
                    self._save()
                    last_save = time.perf_counter()

    def _log(self, averages: dict[str, float]) -> None:
        """Write a row of the averages since the last one."""
        step = self.trainer.step
        row = dict(
            kind="train",
            step=step,
            epoch=step / steps_per_epoch(len(self.dataset.train), self.settings.batch_size),
            skipped=self.trainer.health.check(),
            learning_rate=float(self.trainer.rate),
            seconds=time.perf_counter() - self.start,
        )
        self.metrics.append(row | averages)
        self.progress.update(averages)

    def _save(self) -> None:
        seconds = time.perf_counter() - self.start
        save_state(self.run, dict(self.trainer.state(), metrics_bytes=self.metrics.sync(), seconds=seconds))
        save_model(self.run / WEIGHTS, self.trainer.average, self.dataset.classes, self.settings.objective)

    def _measure(self, limits: Mapping[str, Any]) -> Report:
        """Evaluate the average of the weights, and write a row of what was found."""
        settings, trainer = self.settings, self.trainer
        with cdn_kernels.using(trainer.impl):
            result = evaluate(
                trainer.average,
                self.dataset.test,
                levels=settings.levels,
                precision=settings.precision,
                batch_size=self.batch_size,
                objective=settings.objective,
                **limits,
            )
        row = dict(kind="evaluation", step=trainer.step, seconds=time.perf_counter() - self.start, **result)
        self.metrics.append(row)
        self.progress.update(row)
        return result

    def _finish(self) -> Report:
        """Leave the model, calibrated, its evaluation and the pictures."""
        settings, trainer = self.settings, self.trainer
        denoises = settings.objective in ("joint", "denoising")
        if denoises and has_density(trainer.average):
            images, _ = self.dataset.train.images(torch.arange(min(len(self.dataset.train), 256)), trainer.device)
            calibrate(trainer.average, images, CALIBRATION.key(settings.seed), self.batch_size)
        self._save()
        result = self._measure(FINAL)
        self._draw(denoises)
        return result

    def _draw(self, denoises: bool) -> None:
        """Draw the pictures, those that can be drawn."""
        say, model, jem = self.progress.say, self.trainer.average, self.trainer.jem
        denoising, chains, curves = (self.run / name for name in PICTURES)
        if denoises:
            options: dict[str, Any] = dict(classes=self.dataset.classes, precision=self.settings.precision)
            attempt(lambda: denoising_picture(model, self.dataset.test, denoising, **options), denoising, say)
        if jem:
            attempt(lambda: chains_picture(jem.chains, chains), chains, say)
        attempt(lambda: curves_picture(self.run / METRICS, curves), curves, say)


def _prepare(settings: Settings, run: Path, resume: bool, download: bool) -> tuple[Settings, Dataset, Fingerprint]:
    """Return the settings with what the data decides, the data to train on, and the fingerprint of all of it."""
    dataset = _load(settings, run, resume, download)
    found = fingerprint(dataset)
    if resume:
        require_same_data(run, found)
    if settings.data == "imagefolder":
        settings = replace(settings, image_size=dataset.shape[-1])  # recorded, even if it was left to the images
    if settings.train_images is not None:
        chosen = balanced_indices(dataset.train.labels, settings.train_images, settings.seed)
        dataset = replace(dataset, train=Subset(dataset.train, chosen))
    return settings, dataset, found


def _load(settings: Settings, run: Path, resume: bool, download: bool) -> Dataset:
    """Load the data of a run."""
    try:
        return load_dataset(settings.data, settings.data_dir, download=download, image_size=settings.image_size)
    except DataError:
        if resume and settings.data != "hf" and settings.data_dir is not None and not Path(settings.data_dir).exists():
            raise DataError(
                f"{run}: its data is not at {settings.data_dir} any more: say where it is with --data-dir DIR"
            ) from None
        raise


def _restore(trainer: Trainer, state: dict[str, Any], run: Path) -> None:
    try:
        if wrong := misfit({name: state[name] for name in _PROGRESS}, _PROGRESS):
            raise ValueError(wrong)
        trainer.restore(state)
    except (KeyError, TypeError, ValueError, RuntimeError, NotFiniteError) as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the checkpoint in {run} does not fit its {CONFIG}: {cause}") from None


def _config(settings: Settings, dataset: Dataset, model: Network, steps: int) -> RunConfig:
    return RunConfig(
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
    except ValueError:  # Python allows handlers of signals in the main thread only
        previous = {}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
