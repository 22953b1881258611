"""The studies that chose the defaults: variants of small runs on CIFAR-10, trained and measured alike."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from cdn.data import Dataset
from cdn.evaluation import SIGMAS
from cdn.files import Results
from cdn.model.density import denoise
from cdn.model.finite import decided
from cdn.model.inputs import sigma_key
from cdn.noise_keys import EVALUATION
from cdn.pictures.tables import text_table
from cdn.training.changes import CHANGES
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer
from cdn_kernels import NoiseLevels
from cdn_kernels import reference as torch_ops

# Settings of a run, or those in which a variant differs, and changes that are no settings.
Options = dict[str, Any]
COMMON: Options = dict(
    data="cifar10", batch_size=64, flip=True, precision="bf16", fused=True, ema=0.0, fixed_norm=True, deep_energy=1.0
)
MODEL: Options = COMMON | dict(
    model="gradresnet10",
    width=32,
    crop_size=16,
    crop_padding=0,
    denoising_weight=1.0,
    clean_share=0.0,
    optimizer="adamw",
    learning_rate=3e-3,
    steps=1600,
)
_CLASSES, _DENOISING = dict(objective="classification"), dict(objective="denoising")
MODEL_VARIANTS: dict[str, Options] = {
    f"{head}, {norm}": dict(head=head, norm=norm)
    for norm in ("scale-preserving", "plain")
    for head in ("log-energy", "quadratic", "linear")
}
MODEL_VARIANTS |= {
    "homogeneous": dict(homogeneous=True),
    "cross-entropy only": _CLASSES,
    "cross-entropy only, linear, plain": _CLASSES | dict(head="linear", norm="plain"),
    "denoising only": _DENOISING,
    "direct denoiser": dict(model="denoiser10"),
    "lambda 0.1": dict(denoising_weight=0.1),
    "lambda 0.3": dict(denoising_weight=0.3),
    "lambda 3": dict(denoising_weight=3.0),
    "clean share 0.25": dict(clean_share=0.25),
    "clean share 0.5": dict(clean_share=0.5),
    "clip 0.3": dict(clip=0.3),
    "clip 3": dict(clip=3.0),
    "no clipping": dict(clip=0.0),
    "learning rate 1e-3": dict(learning_rate=1e-3),
    "learning rate 6e-3": dict(learning_rate=6e-3),
    "weight decay 0.1": dict(weight_decay=0.1),
    "label smoothing 0.1": dict(label_smoothing=0.1),
}
RECIPE: Options = COMMON | dict(
    model="gradresnet18",
    width=24,
    crop_padding=4,
    denoising_weight=12.0,
    clean_share=0.5,
    optimizer="muon",
    learning_rate=3e-3,
    deep_energy=0.1,
    steps=600,
)
_ADAMW: Options = dict(optimizer="adamw")
_DENOISER: Options = dict(model="denoiser18", denoising_weight=1.0, clean_share=0.0)
RECIPE_VARIANTS: dict[str, Options] = {
    "muon, fixed norms, lambda 12": {},
    "lambda 4": dict(denoising_weight=4.0),
    "lambda 1": dict(denoising_weight=1.0),
    "free norms": dict(fixed_norm=False),
    "deep energies start at full size": dict(deep_energy=1.0),
    "learning rate 1.5e-3": dict(learning_rate=1.5e-3),
    "learning rate 6e-3": dict(learning_rate=6e-3),
    "adamw, lambda 12": _ADAMW,
    "adamw, lambda 0.6": _ADAMW | dict(denoising_weight=0.6),
    "cross-entropy only": _CLASSES,
    "cross-entropy only, free norms": _CLASSES | dict(fixed_norm=False),
    "cross-entropy only, adamw": _ADAMW | _CLASSES,
    "denoising only": _DENOISING | dict(denoising_weight=1.0),
    "direct denoiser": _DENOISER,
    "direct denoiser, adamw": _DENOISER | _ADAMW,
}
# Every variant takes the same time of a processor, or twice that, as its name says; its number of steps was found by
# its time for one, as docs/ablations.md has it.
SECONDS: Options = RECIPE | dict(width=16, precision="float32", ema=0.998, steps=1850)
SECONDS_VARIANTS: dict[str, Options] = {
    "as it was": {},
    "clean share 0.75": dict(clean_share=0.75, steps=2150),
    "clean share 0.875": dict(clean_share=0.875, steps=2350),
    "clean share 0.25, 0.5, 0.75": dict(clean_shares=(0.25, 0.5, 0.75)),
    "clean share 0.75, 0.5, 0.25": dict(clean_shares=(0.75, 0.5, 0.25)),
    "sigma at most 0.5": dict(sigma_high=0.5),
    "lambda 4": dict(denoising_weight=4.0),
    "lambda 24": dict(denoising_weight=24.0),
    "lambda from 24 to 2": dict(denoising_weight=24.0, final_denoising_weight=2.0),
    "lambda from 2 to 24": dict(denoising_weight=2.0, final_denoising_weight=24.0),
    "width 24": dict(width=24, steps=1040),
    "width 32": dict(width=32, steps=650),
    "one block a stage, width 24": dict(model="gradresnet10", width=24, steps=1600),
    "clean share 0.75, one block a stage, width 24": dict(clean_share=0.75, model="gradresnet10", width=24, steps=1900),
    "three stages of one block, width 32": dict(model="gradresnet8", width=32, steps=1300),
    "batches of 32": dict(batch_size=32, steps=3900),
    "batches of 128": dict(batch_size=128, steps=1100),
    "learning rate 6e-3": dict(learning_rate=6e-3),
    "learning rate 1.2e-2": dict(learning_rate=1.2e-2),
    "twice the time": dict(steps=3700),
    "twice the time, learning rate 6e-3": dict(learning_rate=6e-3, steps=3700),
    "no averaging": dict(ema=0.0),
    "label smoothing 0.1": dict(label_smoothing=0.1),
    "translations by 2": dict(crop_padding=2),
    "whitened stem, frozen": dict(whitened_stem=True),
    "whitened stem, trained": dict(whitened_stem=False),
    "identity-like filters": dict(identity_filters=True),
    "alternating flips": dict(alternating_flips=True),
}
# The network of the model that is shipped, narrower, beside denoisers that have no classes to tell apart: what closes
# the gap between them. Every variant takes the time of the first.
BALANCE: Options = SECONDS | dict(model="gradresnet10", width=24, clean_share=0.75, steps=1900)
BALANCE_VARIANTS: dict[str, Options] = {
    "lambda 12": {},
    "lambda 24": dict(denoising_weight=24.0),
    "lambda 48": dict(denoising_weight=48.0),
    "lambda from 6 to 48": dict(denoising_weight=6.0, final_denoising_weight=48.0),
    "clean share 0.9, 0.75, 0.6": dict(clean_shares=(0.9, 0.75, 0.6)),
    "sigma from 0.02 to 0.5": dict(sigma_low=0.02, sigma_high=0.5),
    "denoising only": _DENOISING | dict(denoising_weight=1.0, clean_share=0.0, steps=1190),
    "direct denoiser": dict(model="denoiser10", denoising_weight=1.0, clean_share=0.0, steps=2050),
}
STUDIES: dict[str, tuple[Options, dict[str, Options]]] = {
    "model": (MODEL, MODEL_VARIANTS),
    "recipe": (RECIPE, RECIPE_VARIANTS),
    "seconds": (SECONDS, SECONDS_VARIANTS),
    "balance": (BALANCE, BALANCE_VARIANTS),
}
# Columns of a table: a key of a row, its form, and its heading.
COLUMNS = (
    ("accuracy_clean", "{:.1f}", "accuracy clean %"),
    ("accuracy_noisy", "{:.1f}", "accuracy noisy %"),
    ("denoising", "{:.3f}", "denoising loss"),
    ("psnr_15", "{:.2f}", "PSNR 15"),
    ("psnr_25", "{:.2f}", "25"),
    ("psnr_50", "{:.2f}", "50"),
    ("seconds", "{:.0f}", "seconds"),
)


def settings_of(options: Options, seed: int = 0) -> Settings:
    """Return the settings among the options of a variant."""
    return Settings(**{name: value for name, value in options.items() if name not in CHANGES}, seed=seed)


def variant_trainer(data: Dataset, options: Options, seed: int) -> Trainer:
    """Return a trainer at the start of a variant."""
    settings = settings_of(options, seed)
    trainer = Trainer(settings, data, settings.total_steps(1), torch.device("cpu"))
    with torch.no_grad():
        for name, change in CHANGES.items():
            if name in options:
                change(trainer, options[name])
    trainer.average.load_state_dict(trainer.model.state_dict())
    return trainer


def train_variant(data: Dataset, options: Options, seed: int) -> tuple[nn.Module, float]:
    """Train one variant and return its averaged model and the seconds of a processor that it took."""
    trainer = variant_trainer(data, options, seed)
    start = time.process_time()
    while trainer.step < trainer.steps:
        trainer.advance()
    return trainer.average, time.process_time() - start


def measure_variant(model: nn.Module, data: Dataset, options: Options) -> Results:
    """Return accuracies (%) on all test images, and denoising figures on the first 1,024 exact ones, centre crops."""
    settings = settings_of(options)
    images, labels = data.test.images(torch.arange(len(data.test)))
    side = options.get("crop_size") or images.shape[-1]
    low = (images.shape[-1] - side) // 2
    x = images[:, :, low : low + side, low : low + side]
    levels, result = NoiseLevels(), {}
    if settings.objective != "denoising":
        noisy, _ = torch_ops.sample_noise(x, levels, EVALUATION.key(1))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            for name, y in (("accuracy_clean", x), ("accuracy_noisy", noisy)):
                hits = sum(int((decided(model(a)) == b).sum()) for a, b in zip(y.split(500), labels.split(500)))
                result[name] = 100 * hits / len(x)
    if settings.objective != "classification":
        x = x[data.test.exact][:1024]
        square = lambda y, sigma: (denoise(model, y, sigma) - x).square().flatten(1).mean(1)
        for sigma in SIGMAS:
            y, _ = torch_ops.sample_noise(x, sigma, EVALUATION.key(2))
            result[f"psnr_{sigma_key(sigma)}"] = float(-10 * square(y, sigma).log10().mean())
        y, drawn = torch_ops.sample_noise(x, levels, EVALUATION.key(3))
        result["denoising"] = float((square(y, drawn) / drawn.square()).mean())
    return result


def study_table(rows: Sequence[Results], names: Iterable[str]) -> str:
    """Return a table of the runs, the seeds side by side."""
    # A run that blew up should look like it, not fill the line with digits.
    cell = lambda value, form: form.format(value) if abs(value) < 1e4 else f"{value:.0e}"
    lines = []
    for name in names:
        if runs := sorted((row for row in rows if row["name"] == name), key=lambda row: row["seed"]):
            cells = [" / ".join(cell(row[key], form) for row in runs if key in row) or None for key, form, _ in COLUMNS]
            lines.append([name, " / ".join(str(row["seed"]) for row in runs), runs[0]["steps"], *cells])
    return text_table(["variant", "seeds", "steps", *(heading for *_, heading in COLUMNS)], lines)
