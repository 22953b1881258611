"""The trainer: what one training step does, and all the state that it changes."""
import copy

import torch

import cdn_kernels
from cdn_kernels import Noise
from cdn_kernels.backends.dispatch import fused_backend
from cdn_kernels.phases import phase

from ..data import augment, batch_indices, channel_mean
from ..objective import joint_step
from .health import Health
from .jem import JointEnergy
from .recipe import learning_rate, make_optimizer


class Trainer:
    """Train one model.

    A step is a pure function of the state, the settings and its own number: batches, augmentation and noise are drawn
    from counters. That is what makes resuming exact.

    Args:
        settings: a :class:`cdn.training.settings.Settings`.
        dataset: a :class:`cdn.data.Dataset`.
        steps: the number of steps in all, which the schedule of the learning rate needs.
        device: where to train.
    """

    def __init__(self, settings, dataset, steps, device):
        self.settings, self.dataset, self.steps, self.device = settings, dataset, steps, device
        torch.manual_seed(settings.seed)
        mean = channel_mean(dataset.train) if settings.mean is None else settings.mean
        self.model = settings.build_model(dataset.num_classes, dataset.shape[0], mean).to(device)
        # The fused kernels and GPUs run fastest channels last, torch's convolutions on a CPU contiguous.
        last = settings.fused or device.type == "cuda"
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.model.to(memory_format=self.layout)
        self.impl = fused_backend(device) if settings.fused else "reference"
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = make_optimizer(self.model, settings.optimizer, settings.learning_rate,
                                        settings.weight_decay)
        self.health = Health(device)
        self.jem = None
        if settings.objective == "jem":
            side = (settings.crop_size,) * 2 if settings.crop_size else dataset.shape[1:]
            self.jem = JointEnergy(settings, (dataset.shape[0], *side), len(dataset.train), device)
        self.step = 0

    def advance(self):
        """Do the next step and return its scalars, which stay on the device."""
        settings, step = self.settings, self.step
        with phase("data"):
            x, labels = self.batch(step)
        rate = learning_rate(step, self.steps, settings.learning_rate, settings.warmup)
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss, parts = self._gradient(x, labels)
        with phase("optimizer"):
            parameters = list(self.model.parameters())
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip or float("inf"))
            # A flag for the optimizer, which then leaves weights and moments alone.
            self.optimizer.found_inf = self.health.observe(parts, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self._update_average(step)
        self.step += 1
        scalars = dict(parts, loss=loss, gradient_norm=norm.detach())
        if "accuracy" in scalars:
            scalars["train_accuracy"] = scalars.pop("accuracy")
        return scalars

    def batch(self, step):
        """Return the images, float32 [B, C, H, W] in [0, 1], and labels of a step."""
        settings = self.settings
        indices = batch_indices(len(self.dataset.train), settings.batch_size, step, settings.seed)
        images, labels = self.dataset.train.load(indices)
        images = augment(images.to(self.device), settings.seed, step, crop_padding=settings.crop_padding,
                         flip=settings.flip, crop_size=settings.crop_size)
        return images.float().div_(255).contiguous(memory_format=self.layout), labels.to(self.device)

    def state(self):
        """Return everything that :meth:`restore` needs."""
        state = dict(step=self.step, model=self.model.state_dict(), average=self.average.state_dict(),
                     optimizer=self.optimizer.state_dict(), health=self.health.counters, rng=torch.get_rng_state())
        return state | dict(chains=self.jem.chains) if self.jem else state

    def restore(self, state):
        """Take over a state, so that the next step is the one that would have followed."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.health.counters.copy_(state["health"])
        torch.set_rng_state(state["rng"].cpu())
        if self.jem:
            self.jem.chains.copy_(state["chains"])
        self.step = state["step"]

    def _gradient(self, x, labels):
        """Add the gradient of the objective to ``.grad`` and return (loss, parts)."""
        settings, step = self.settings, self.step
        if self.jem:
            with cdn_kernels.using(self.impl):
                return self.jem.step(self.model, x, labels, step)
        return joint_step(self.model, x, labels, settings.levels, Noise(settings.seed, step), impl=self.impl,
                          **settings.weights(step / self.steps))

    def _update_average(self, step):
        # Early weights are worth little: the average starts short and reaches its full length with time.
        decay = min(self.settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
            for mine, theirs in zip(self.average.buffers(), self.model.buffers()):
                mine.copy_(theirs)
