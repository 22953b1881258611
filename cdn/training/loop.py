"""The training of a run: steps, evaluations, checkpoints, and the files at its end."""

import io
import math
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import cdn_kernels
from cdn.data import (
    Dataset,
    Fingerprint,
    Subset,
    balanced_indices,
    differences,
    fingerprint,
    load_dataset,
    steps_per_epoch,
)
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
from cdn.processes import ALONE, Processes, local_rank
from cdn.run_folder.config import RunConfig, write_config
from cdn.run_folder.data_identity import note_data, require_same_data, write_fingerprint
from cdn.run_folder.forms import misfit
from cdn.run_folder.journal import Journal
from cdn.run_folder.lock import locked
from cdn.run_folder.names import CONFIG, DATA, METRICS, PICTURES, PREVIOUS, PROFILE, STATE, WEIGHTS
from cdn.run_folder.state import has_state, load_state, save_state
from cdn.run_folder.weights import save_model
from cdn.training.profile import memory_text, profile_steps, profile_text, write_profile
from cdn.training.progress import Averages, Progress
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer

# Evaluations on the way use this many test images; the one at the end uses all.
QUICK = dict(limit=1000, denoising_limit=256)
FINAL = dict(denoising_limit=1024)
CALIBRATED = 256  # training images that the curve of estimates of the noise level is taken from
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
    processes: Processes = ALONE,
    patience: float = 0.0,
    dataset: Dataset | None = None,
) -> Report | None:
    """Train a model and leave a complete run folder.

    Of several processes, which all call this with the same arguments, the first one alone reads and writes the run
    folder. All read the data, and what one of them fails at, all do.

    Args:
        settings: a :class:`cdn.training.settings.Settings`.
        run: the run folder, created if needed.
        device: where to train.
        resume: continue from the last checkpoint of the run.
        download: fetch the data set if it is missing.
        profile: measure time and bytes of the phases of a step before training, print them, and write
            ``profile.json``.
        show: True or False for a progress bar; None for one on terminals.
        processes: those that train together.
        patience: seconds to wait for another training to release the run.
        dataset: the data, of the name that the settings have; that of :func:`cdn.data.own_dataset` for images of your
            own. None to load it by that name. It has to be given again to resume the run.

    Returns:
        The last evaluation, or None if the run was interrupted (its state is saved).

    Raises:
        CDNError: bad data, other data than that of the start, a full disk, a damaged checkpoint, a run that another
            process is training, or one that diverged, and the end of one of the processes; what was saved is intact.
    """
    run = Path(run)
    show = show if processes.first else False
    with ExitStack() as stack:
        lock = lambda: stack.enter_context(locked(run, patience))
        if resume:
            processes.of_first(lock)
        settings = processes.of_first(lambda: settings.decided(device))
        load = lambda: _checked(dataset, settings) if dataset else _load(settings, run, resume, download)
        settings, data, found = _prepare(settings, run, resume, load, processes)
        steps = settings.total_steps(steps_per_epoch(len(data.train), settings.batch_size))
        progress: Progress  # made when it is known where the run begins
        trainer = processes.together(
            lambda: Trainer(settings, data, steps, device, lambda text: progress.say(text), processes)
        )
        begin = lambda: _begun(trainer, run, resume, found, lock) if processes.first else None
        metrics, elapsed = processes.together(begin) or (None, 0.0)
        _spread(trainer)
        progress = Progress(steps, trainer.step, show)
        return _Training(trainer, run, metrics, progress, elapsed).complete(profile)


def _begun(
    trainer: Trainer, run: Path, resume: bool, found: Fingerprint, lock: Callable[[], object]
) -> tuple[Journal, float]:
    """Make a run folder, or take over the state that one has; return its rows and the seconds that they took."""
    settings, state = trainer.settings, None
    if settings.init and not (resume and has_state(run)):
        trainer.start_from(settings.init)
    if resume:
        # A run that was killed before its first checkpoint resumes from its beginning.
        state = load_state(run, trainer.device) if has_state(run) else None
        if state:
            _restore(trainer, state, run)
        note_data(run, settings.data_dir, found)
    else:
        make_folder(run)
        lock()
        if (run / CONFIG).exists():
            again = f"--resume {shlex.quote(str(run))}"
            raise CDNError(f"{run} already holds a run: continue it with {again}, or choose another --out")
        write_fingerprint(run, found)
        write_config(run, _config(settings, trainer.dataset, trainer.model, trainer.steps))
    sweep(run, STATE, PREVIOUS, WEIGHTS, CONFIG, DATA, *PICTURES, age=0)
    return Journal(run / METRICS, state["metrics_bytes"] if state else 0), state["seconds"] if state else 0.0


def _spread(trainer: Trainer) -> None:
    """Let all processes begin with the state of the first one."""

    def packed() -> bytes:
        buffer = io.BytesIO()
        torch.save(trainer.state(), buffer)
        return buffer.getvalue()

    if trainer.processes.count > 1:
        state = trainer.processes.of_first(packed)
        if not trainer.processes.first:
            trainer.restore(torch.load(io.BytesIO(state), map_location=trainer.device, weights_only=True))


class _Training:
    """The part of a training from its first step, or the first after a checkpoint, to its end.

    Args:
        trainer: in the state to go on from.
        run: the run folder, which the first process has locked.
        metrics: the file of rows; None on processes that do not write.
        progress: the progress bar.
        elapsed: seconds of training before that state.
    """

    def __init__(
        self, trainer: Trainer, run: Path, metrics: Journal | None, progress: Progress, elapsed: float
    ) -> None:
        self.trainer, self.run, self.metrics, self.progress = trainer, run, metrics, progress
        self.settings, self.dataset, self.processes = trainer.settings, trainer.dataset, trainer.processes
        self.start = time.perf_counter() - elapsed
        self.saved = time.perf_counter()
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
                rows = profile_steps(trainer)
                self.processes.of_first(lambda: write_profile(rows, self.run / PROFILE))
                say(f"{profile_text(rows)}\n{memory_text(trainer.device)}")
            with _stop_requests(self.processes) as stop:
                self._take_steps(stop)
                if trainer.step < trainer.steps:
                    self.processes.together(self._save)
            if trainer.step < trainer.steps:
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
            f"{settings.batch_size} on {trainer.device}"
            + (f" by {self.processes.count} processes" if self.processes.count > 1 else "")
            + (f", from step {trainer.step:,}" if trainer.step else "")
        )
        if trainer.origin:
            self.progress.say(trainer.origin)

    def _take_steps(self, stop: Sequence[int]) -> None:
        """Train until the last step, or until a signal asks one of the processes to stop."""
        settings, trainer, averages = self.settings, self.trainer, Averages()
        evaluate_every = max(trainer.steps // settings.evaluations, 1)
        self._waited()  # while steps were profiled
        while trainer.step < trainer.steps and not self.processes.any(bool(stop)):
            self.processes.together(self._save_and_prepare)
            averages.add(settings.batch_size, trainer.take())
            self.progress.advance()
            done = trainer.step
            if done % settings.log_every == 0 or done == trainer.steps:
                self.processes.together(lambda: self._log(averages.take(self._waited())))
            if done % evaluate_every == 0 and done < trainer.steps:
                self._measure(QUICK)

    def _save_and_prepare(self) -> None:
        """Save what the last step has left, if it is time to, and prepare the next."""
        if self.trainer.step and time.perf_counter() - self.saved > self.settings.checkpoint_seconds:
            self._save()
        self.trainer.prepare()

    def _waited(self) -> float | None:
        """Return for how long steps waited for images since the last call; None where these need no decoding."""
        batches = self.trainer.batches
        waited, batches.waited = batches.waited, 0.0
        return None if batches.loader is None else waited

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
        self._write(row | averages)
        self.progress.update(averages)

    def _write(self, row: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.append(row)

    def _save(self) -> None:
        if self.metrics is None:
            return
        seconds = time.perf_counter() - self.start
        save_state(self.run, dict(self.trainer.state(), metrics_bytes=self.metrics.sync(), seconds=seconds))
        save_model(self.run / WEIGHTS, self.trainer.average, self.dataset.classes, self.settings.objective)
        self.saved = time.perf_counter()

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
                processes=self.processes,
                **limits,
            )
        row = dict(kind="evaluation", step=trainer.step, seconds=time.perf_counter() - self.start, **result)
        self.processes.together(lambda: self._write(row))
        self.progress.update(row)
        return result

    def _finish(self) -> Report:
        """Leave the model, calibrated, its evaluation and the pictures."""
        settings, trainer = self.settings, self.trainer
        denoises = settings.objective in ("joint", "denoising")
        if denoises and has_density(trainer.average):
            images, _ = self.dataset.train.images(self.dataset.train.first(CALIBRATED), trainer.device)
            calibrate(trainer.average, images, CALIBRATION.key(settings.seed), self.batch_size)
        self.processes.together(self._save)
        result = self._measure(FINAL)
        if self.processes.first:
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


def _prepare(
    settings: Settings, run: Path, resume: bool, load: Callable[[], Dataset], processes: Processes
) -> tuple[Settings, Dataset, Fingerprint]:
    """Return the settings with what the data decides, the data to train on, and the fingerprint of all of it."""

    def read() -> tuple[Dataset, Fingerprint]:
        dataset = load()
        return dataset, fingerprint(dataset)

    loads = not local_rank()  # one process of each machine fetches what the others then find
    mine = processes.together(lambda: read() if loads else None)
    dataset, found = processes.together(lambda: mine or read())
    all_found = processes.gather(found)
    for rank, other in enumerate(all_found):
        if changes := differences(all_found[0], other):
            raise DataError(f"process {rank} has other data than the first one: {'; '.join(changes)}")
    if resume:
        processes.of_first(lambda: require_same_data(run, found))
    if settings.data == "imagefolder":
        settings = replace(settings, image_size=dataset.shape[-1])  # recorded, even if it was left to the images
    if settings.train_images is not None:
        chosen = balanced_indices(dataset.train.labels, settings.train_images, settings.seed)
        dataset = replace(dataset, train=Subset(dataset.train, chosen))
    return settings, dataset, found


def _checked(dataset: Dataset, settings: Settings) -> Dataset:
    if dataset.name != settings.data:
        raise CDNError(f"dataset: expected the {settings.data!r} that settings.data names, got {dataset.name!r}")
    return dataset


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
def _stop_requests(processes: Processes) -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list, so that a step is never torn; a second Ctrl-C stops at once.

    Where there are several processes, one Ctrl-C comes twice: from the terminal, and from torchrun, which does not
    wait long.
    """
    requests: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if requests and number == signal.SIGINT and processes.count == 1:
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
