"""The trainer: what one training step does, and all the state that it changes."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import cdn_kernels
from cdn.data import Augmentation, Batches, Dataset, channel_mean
from cdn.model.finite import require_finite
from cdn.objective import Parts, joint_step
from cdn.run_folder.forms import misfit
from cdn.training.health import Health
from cdn.training.initial import take_weights
from cdn.training.jem import MOMENT_IMAGES, JointEnergy
from cdn.training.recipe import learning_rate, make_optimizer
from cdn.training.settings import Settings
from cdn_kernels import Noise, count_clean
from cdn_kernels.graphs import Graphed
from cdn_kernels.phases import phase


class Trainer:
    """Train one model.

    A step is a pure function of the state, the settings and its own number: batches, augmentation and noise are drawn
    from counters. That is what makes resuming exact. What changes from step to step is written into tensors first; the
    step itself only works on the device and never waits for it, and with the fused kernels it is replayed
    (:class:`cdn_kernels.Graphed`), with a recording for each number of clean images: as a CUDA graph on a GPU, and on a
    CPU if it is small.

    Args:
        settings: a :class:`cdn.training.settings.Settings`.
        dataset: a :class:`cdn.data.Dataset`.
        steps: the number of steps in all, which the schedule of the learning rate needs.
        device: where to train.
        say: called with a sentence about what could not be done as it should.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        steps: int,
        device: torch.device,
        say: Callable[[str], object] = warnings.warn,
    ) -> None:
        settings = settings.decided(device)
        self.settings, self.dataset, self.steps, self.device = settings, dataset, steps, device
        torch.manual_seed(settings.seed)
        mean = channel_mean(dataset.train) if settings.mean is None else settings.mean
        self.model = settings.build_model(dataset.num_classes, dataset.shape[0], mean).to(device)
        # The fused kernels and GPUs run fastest channels last, torch's convolutions on a CPU contiguous.
        last = settings.fused or device.type == "cuda"
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.model.to(memory_format=self.layout)  # type: ignore[call-overload]  # missing in torch's declarations
        self.impl = settings.kernels
        settings.backends(device)  # which says what cannot run, before anything does
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = make_optimizer(self.model, settings.optimizer, settings.learning_rate, settings.weight_decay)
        self.health = Health(device)
        self.batches = Batches(
            dataset.train,
            settings.batch_size,
            settings.seed,
            device,
            Augmentation(
                dataset.shape, crop_padding=settings.crop_padding, flip=settings.flip, crop_size=settings.crop_size
            ),
        )
        # All that a step knows of its number: the number itself, the learning rate, by how much the average of the
        # weights moves, and lambda. torch's fused AdamW reads a rate in double precision on CPUs, a float elsewhere.
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.rate = torch.zeros((), dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        self.share, self.denoising_weight = torch.zeros((), device=device), torch.zeros((), device=device)
        self.jem: JointEnergy | None = None
        if settings.objective == "jem":
            self.jem = JointEnergy(settings, self._first_images(MOMENT_IMAGES), len(dataset.train), device)
        self.clean: int | None = None  # how many images of the step stay clean, where the host can tell
        self.say = say
        self.step = 0
        self._start()

    def _start(self) -> None:
        """Let the optimizer read the learning rate from its tensor, and record the step anew."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        # The chains of a joint energy model are drawn on the CPU, from what torch's generator gives.
        recorded = self.settings.fused and self.device.type in ("cpu", "cuda") and not self.jem
        self.run: Callable[[], Parts] = Recordings(self) if recorded else self.work

    def start_from(self, path: str) -> str:
        """Take over the weights of another run, and say what was taken; see :func:`.initial.take_weights`."""
        taken = take_weights(self.model, self.dataset.classes, path)
        self.average.load_state_dict(self.model.state_dict())
        return taken

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
        scalars = self.run()
        self.step += 1
        return scalars

    def prepare(self) -> None:
        """Write down on the device what the next step needs to know."""
        settings, step = self.settings, self.step
        with phase("data"):
            self.batches.seek(step)
        self.number.fill_(step)
        self.rate.fill_(learning_rate(step, self.steps, settings.learning_rate, settings.warmup))
        # Early weights are worth little: the average starts short and reaches its full length with time.
        self.share.fill_(1 - min(settings.ema, (1 + step) / (10 + step)))
        self.denoising_weight.fill_(settings.weights(step / self.steps)["denoising_weight"])
        if settings.clean == "stratified" and settings.objective in ("joint", "denoising"):
            self.clean = count_clean(settings.batch_size, Noise(settings.seed, step), settings.levels)

    def work(self) -> Parts:
        """Do the step that was prepared, all of it on the device, and return its scalars."""
        settings = self.settings
        with phase("data"):
            x, labels = self.batch()
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss, parts = self._gradient(x, labels)
        with phase("optimizer"):
            parameters = list(self.model.parameters())
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip or float("inf"))
            # A flag for the optimizer, which then leaves weights and moments alone.
            self.optimizer.found_inf = self.health.observe(parts, norm)
            self.optimizer.step()
            self._update_average()
        scalars = dict(parts, loss=loss, gradient_norm=norm.detach())
        if "accuracy" in scalars:
            scalars["train_accuracy"] = scalars.pop("accuracy")
        return scalars

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return the images, float32 [B, C, H, W] in [0, 1], and labels of the step that was prepared."""
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

    def _gradient(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Parts]:
        """Add the gradient of the objective to ``.grad`` and return (loss, parts)."""
        settings = self.settings
        if self.jem:
            with cdn_kernels.using(self.impl):
                return self.jem.step(self.model, x, labels, self.step)
        weights = settings.weights(0)
        if settings.final_denoising_weight is not None and settings.objective != "classification":
            weights["denoising_weight"] = self.denoising_weight
        noise = Noise(settings.seed, self.number)
        return joint_step(self.model, x, labels, settings.levels, noise, clean=self.clean, impl=self.impl, **weights)

    def _update_average(self) -> None:
        with torch.no_grad():
            for mine, theirs in zip(self.average.parameters(), self.model.parameters()):
                mine.lerp_(theirs, self.share)
            for buffer, current in zip(self.average.buffers(), self.model.buffers()):
                buffer.copy_(current)


class Recordings:
    """The step of a trainer, recorded once for each number of clean images, of which there are two at most.

    That number, which the host knows, decides the shapes of a step.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.by_count: dict[int | None, Graphed[Parts]] = {}

    def __call__(self) -> Parts:
        """Do the step that was prepared."""
        trainer = self.trainer
        if trainer.clean not in self.by_count:
            self.by_count[trainer.clean] = Graphed(trainer.work, trainer.device, say=trainer.say)
        return self.by_count[trainer.clean]()
