"""The trainer: what one training step does, and all the state that it changes."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import cdn_kernels
from cdn.data import Augmentation, Batches, Dataset, channel_mean
from cdn.errors import CDNError
from cdn.model.finite import require_finite
from cdn.objective import Parts, WholeBatch, joint_step
from cdn.processes import ALONE, Processes
from cdn.run_folder.forms import misfit
from cdn.training.batch_norm import share_statistics
from cdn.training.health import Health
from cdn.training.initial import take_weights
from cdn.training.jem import MOMENT_IMAGES, JointEnergy
from cdn.training.recipe import learning_rate, make_optimizer
from cdn.training.recordings import Recordings
from cdn.training.reduction import Reduction
from cdn.training.settings import Settings
from cdn_kernels import Noise, count_clean, sample_sigma
from cdn_kernels.phases import phase


class Trainer:
    """Train one model.

    A step is a pure function of the state, the settings and its own number: batches, augmentation and noise are drawn
    from counters. That is what makes resuming exact. What changes from step to step is written into tensors first; the
    step itself only works on the device and never waits for it, and with the fused kernels it is replayed
    (:class:`cdn_kernels.Graphed`), with a recording for each number of clean images: as a CUDA graph on a GPU, and on a
    CPU if it is small.

    Several processes, or several parts of a step, do the same step, to rounding: each takes a share of the places of
    the batch, and all sums are divided by what the whole batch has. Processes add up their gradients, and each of them
    updates its weights, which stay the same in all.

    Args:
        settings: a :class:`cdn.training.settings.Settings`.
        dataset: a :class:`cdn.data.Dataset`.
        steps: the number of steps in all, which the schedule of the learning rate needs.
        device: where to train.
        say: called with a sentence about what could not be done as it should.
        processes: those that train together.

    Raises:
        CDNError: settings that the data, the device, or several processes do not allow.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        steps: int,
        device: torch.device,
        say: Callable[[str], object] = warnings.warn,
        processes: Processes = ALONE,
    ) -> None:
        settings = settings.decided(device)
        _check_processes(settings, processes)
        self.settings, self.dataset, self.steps, self.device = settings, dataset, steps, device
        self.processes, self.say, self.step = processes, say, 0
        self.origin: str | None = None  # a sentence on weights that were taken over
        torch.manual_seed(settings.seed)
        mean = channel_mean(dataset.train) if settings.mean is None else settings.mean
        self.model = settings.build_model(dataset.num_classes, dataset.shape[0], mean).to(device)
        if settings.recompute:
            self.model.trunk.recompute = True  # type: ignore[union-attr]  # of all that settings allow
        # The fused kernels and GPUs run fastest channels last, torch's convolutions on a CPU contiguous.
        last = settings.fused or device.type == "cuda"
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.model.to(memory_format=self.layout)  # type: ignore[call-overload]  # missing in torch's declarations
        self.impl = settings.kernels
        settings.backends(device)  # which says what cannot run, before anything does
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = make_optimizer(self.model, settings.optimizer, settings.learning_rate, settings.weight_decay)
        share = processes.share(settings.batch_size)
        self.pieces = _pieces(share, settings.accumulate)
        self.reduction: Reduction | None = None
        if processes.count > 1:
            share_statistics(self.model, processes)
            self.reduction = Reduction(self.model.parameters(), _scalars(settings), processes)
        self.health = Health(device)
        augmentation = Augmentation(
            dataset.shape, crop_padding=settings.crop_padding, flip=settings.flip, crop_size=settings.crop_size
        )
        self.batches = Batches(
            dataset.train,
            settings.batch_size,
            settings.seed,
            device,
            augmentation,
            share,
            settings.workers,
            settings.crop_area,
        )
        # All that a step knows of its number: the number itself, the learning rate, by how much the average of the
        # weights moves, and lambda. torch's fused AdamW reads a rate in double precision on CPUs, a float elsewhere.
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.rate = torch.zeros((), dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        self.share, self.denoising_weight = torch.zeros((), device=device), torch.zeros((), device=device)
        self.jem: JointEnergy | None = None
        if settings.objective == "jem":
            self.jem = JointEnergy(settings, self._first_images(MOMENT_IMAGES), len(dataset.train), device)
        # How many images of each piece stay clean, where the host can tell, whether all of the batch do, and how many
        # do not, which only a step in several pieces asks for.
        self.clean: tuple[int | None, ...] = (None,) * len(self.pieces)
        self.all_clean = False
        self.whole: WholeBatch | None = None
        if processes.count > 1 or len(self.pieces) > 1:
            self.whole = WholeBatch(settings.batch_size, torch.zeros((), dtype=torch.int64, device=device))
        self._start()

    def _start(self) -> None:
        """Let the optimizer read the learning rate from its tensor, and record the step anew."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        settings = self.settings
        # The chains of a joint energy model are drawn on the CPU, from what torch's generator gives, and steps that are
        # divided for lack of memory have none for recordings.
        recorded = bool(settings.fused) and self.device.type in ("cpu", "cuda")
        recorded = recorded and self.jem is None and settings.accumulate == 1 and not settings.recompute
        if self.reduction is not None:
            # BatchNorm talks to the other processes in the midst of a step.
            recorded = recorded and not settings.model.startswith("resnet")
            self.run: Callable[[], Parts] = Together(self, self.reduction, recorded)
        else:
            self.run = Recordings(self.work, lambda: self.clean, self.device, self.say) if recorded else self.work

    def start_from(self, path: str) -> None:
        """Take over the weights of another run, by :func:`.initial.take_weights`; ``origin`` says what was taken."""
        self.origin = take_weights(self.model, self.dataset.classes, path)
        self.average.load_state_dict(self.model.state_dict())

    def _first_images(self, count: int) -> Tensor:
        """Return the images of the first steps, at least so many, on the CPU."""
        images = []
        for step in range(-(-count // self.settings.batch_size)):
            self.batches.seek(step)
            images.append(self.batch()[0].cpu())
        return torch.cat(images)

    def advance(self) -> Parts:
        """Do the next step and return its scalars, which stay on the device until the step after it."""
        self.prepare()
        return self.take()

    def take(self) -> Parts:
        """Do the step that was prepared, as :meth:`advance` does."""
        scalars = self.run()
        self.step += 1
        return scalars

    def prepare(self) -> None:
        """Write down on the device what the next step needs to know."""
        settings, step = self.settings, self.step
        self.batches.seek(step)
        self.number.fill_(step)
        self.rate.fill_(learning_rate(step, self.steps, settings.learning_rate, settings.warmup))
        # Early weights are worth little: the average starts short and reaches its full length with time.
        self.share.fill_(1 - min(settings.ema, (1 + step) / (10 + step)))
        self.denoising_weight.fill_(settings.weights(step / self.steps)["denoising_weight"])
        if settings.objective in ("joint", "denoising"):
            self._count(Noise(settings.seed, step))

    def work(self) -> Parts:
        """Do the step that was prepared, all of it on the device, and return its scalars."""
        return self.update(self.gradient())

    def gradient(self) -> Parts:
        """Leave the gradient of the images of this process in ``.grad``, and return its scalars."""
        with phase("data"):
            x, labels = self.batch()
        self.optimizer.zero_grad()
        sums: Parts = {}
        for piece, clean in zip(self.pieces, self.clean):
            if self.reduction is not None:
                self.reduction.complete = piece is self.pieces[-1]
            here = slice(piece.start - self.pieces[0].start, piece.stop - self.pieces[0].start)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                loss, parts = self._piece_gradient(x[here], labels[here], piece.start, clean)
            for name, value in dict(parts, loss=loss).items():
                sums[name] = sums[name] + value if name in sums else value
        return sums

    def update(self, scalars: Parts) -> Parts:
        """Take the step along ``.grad``, unless that or the scalars are not finite; return all that is said of it."""
        with phase("optimizer"):
            parameters = list(self.model.parameters())
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip or float("inf"))
            # A flag for the optimizer, which then leaves weights and moments alone.
            self.optimizer.found_inf = self.health.observe(scalars, norm)
            self.optimizer.step()
            self._update_average()
        scalars = dict(scalars, gradient_norm=norm.detach())
        if "accuracy" in scalars:
            scalars["train_accuracy"] = scalars.pop("accuracy")
        return scalars

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return the images of this process, float32 [n, C, H, W] in [0, 1], and labels of the prepared step."""
        images, labels = self.batches.read()
        return images.float().div_(255).contiguous(memory_format=self.layout), labels

    def state(self) -> dict[str, Any]:
        """Return everything that :meth:`restore` needs."""
        state = dict(
            step=self.step,
            model=self.model.state_dict(),
            average=self.average.state_dict(),
            optimizer=self.optimizer.state_dict(),
            health=self.health.counters,
            rng=torch.get_rng_state(),
        )
        return state | dict(chains=self.jem.chains) if self.jem else state

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state, so that the next step is the one that would have followed.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: it is that of another run, or damaged.
        """
        # The optimizer looks at its part itself; an empty one knows no parameter before its first step.
        form = self.state() | dict(step=int, optimizer=list)
        if wrong := misfit({name: state[name] for name in form}, form, whole=True):
            raise ValueError(wrong)
        if not 0 <= state["step"] <= self.steps:
            raise ValueError(f"step is {state['step']} of {self.steps}")
        for part in ("model", "average"):
            for name, tensor in state[part].items():
                require_finite(tensor, f"{part}.{name} holds nan or infinity")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.health.counters.copy_(state["health"])
        torch.set_rng_state(state["rng"].cpu())
        if self.jem:
            self.jem.chains.copy_(state["chains"])
        self.step = state["step"]
        self._start()

    def _count(self, noise: Noise) -> None:
        """Write down how many images of the step that has this noise stay clean."""
        levels, batch = self.settings.levels, self.settings.batch_size
        if levels.clean == "stratified":
            places = (replace(noise, places=piece.start) for piece in self.pieces)
            self.clean = tuple(count_clean(len(piece), here, levels) for piece, here in zip(self.pieces, places))
            noisy = batch - count_clean(batch, noise, levels)
            self.all_clean = noisy == 0
        elif self.whole is not None:
            noisy = int((sample_sigma(batch, noise, levels) > 0).sum())
        if self.whole is not None:
            assert isinstance(self.whole.noisy, Tensor)  # for a step to read
            self.whole.noisy.fill_(noisy)

    def _piece_gradient(self, x: Tensor, labels: Tensor, first: int, clean: int | None) -> tuple[Tensor, Parts]:
        """Add the gradient of the objective to ``.grad``, at images from a place on, and return (loss, parts)."""
        settings = self.settings
        if self.jem:
            with cdn_kernels.using(self.impl):
                return self.jem.step(self.model, x, labels, self.step)
        weights = settings.weights(0)
        if settings.moves_lambda:
            weights["denoising_weight"] = self.denoising_weight
        noise = Noise(settings.seed, self.number, first)
        return joint_step(
            self.model, x, labels, settings.levels, noise, whole=self.whole, clean=clean, impl=self.impl, **weights
        )

    def _update_average(self) -> None:
        with torch.no_grad():
            for mine, theirs in zip(self.average.parameters(), self.model.parameters()):
                mine.lerp_(theirs, self.share)
            for buffer, current in zip(self.average.buffers(), self.model.buffers()):
                buffer.copy_(current)


class Together:
    """The step of a trainer whose processes add up their gradients in the midst of it.

    Where it can be recorded, what comes before that and what comes after are; else, and where a step is too large to
    gain by it, sums are begun while the last sweep goes on.

    Args:
        trainer: of this process.
        reduction: its gradients.
        recorded: whether to try.
    """

    def __init__(self, trainer: Trainer, reduction: Reduction, recorded: bool) -> None:
        self.trainer, self.reduction = trainer, reduction
        self.parts: tuple[Callable[[], None], Callable[[], Parts]]
        if not recorded or reduction.overlapping:
            self._overlap()
            return
        before = Recordings(self._before, lambda: (trainer.clean, trainer.all_clean), trainer.device, trainer.say)
        after = Recordings(self._after, lambda: trainer.all_clean, trainer.device, trainer.say)
        self.parts = before, after

    def __call__(self) -> Parts:
        """Do the step that was prepared."""
        before, _ = self.parts
        before()
        with phase("exchange"):
            self.reduction.finish(self.trainer.all_clean)
        if isinstance(before, Recordings) and before.gave_up:
            self._overlap()
        return self.parts[1]()

    def _overlap(self) -> None:
        """Go on without recordings, which hooks would end, and exchanges in the midst of them."""
        self.parts = self._before, self._after
        self.reduction.overlap()
        self.trainer.optimizer.divide(self.trainer.processes)

    def _before(self) -> None:
        self.reduction.collect(self.trainer.gradient())

    def _after(self) -> Parts:
        return self.trainer.update(self.reduction.hand_out(self.trainer.all_clean))


def _check_processes(settings: Settings, processes: Processes) -> None:
    """Raise CDNError where several processes cannot train what is asked for."""
    if processes.count == 1:
        return
    if settings.objective == "jem":
        raise CDNError(
            f"--objective jem trains in one process, which has all chains, and this is one of {processes.count}: "
            "start it without torchrun"
        )
    if settings.model.startswith("resnet") and processes.count > settings.batch_size:
        raise CDNError(
            f"a {settings.model} needs an image for every process, as it takes statistics over the batch (BatchNorm), "
            f"got a batch of {settings.batch_size} for {processes.count}"
        )


def _pieces(share: range, count: int) -> list[range]:
    """Return the places of a share in so many contiguous parts, without empty ones."""
    parts = (Processes(part, count).share(len(share)) for part in range(count))
    return [range(share.start + part.start, share.start + part.stop) for part in parts if part]


def _scalars(settings: Settings) -> list[str]:
    """Return the names of the scalars of a step's gradient, whatever images it has."""
    weights, names = settings.weights(0), ["loss"]
    if weights["classification_weight"]:
        names += ["classification", "accuracy"]
    if weights["denoising_weight"] or settings.moves_lambda:
        names.append("denoising")
    return names
