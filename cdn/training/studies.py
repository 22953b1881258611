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
from cdn.model.head import DEEP_ENERGY
from cdn.model.inputs import sigma_key
from cdn.noise_keys import EVALUATION
from cdn.pictures.tables import text_table
from cdn.training.settings import Settings
from cdn.training.trainer import Trainer
from cdn_kernels import NoiseLevels
from cdn_kernels import reference as torch_ops

# Settings of a run, or those in which a variant differs. Beside those of the trainer: whether Muon keeps the norms of
# filters, and how large the energies of all stages but the last are at the start.
Options = dict[str, Any]
COMMON: Options = dict(
    data="cifar10", batch_size=64, flip=True, precision="bf16", fused=True, fixed_norm=True, deep_energy=1.0
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
STUDIES: dict[str, tuple[Options, dict[str, Options]]] = {
    "model": (MODEL, MODEL_VARIANTS),
    "recipe": (RECIPE, RECIPE_VARIANTS),
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


def train_variant(data: Dataset, options: Options, seed: int) -> tuple[nn.Module, float]:
    """Train one variant and return its model and the seconds it took."""
    chosen = {name: value for name, value in options.items() if name not in ("fixed_norm", "deep_energy")}
    settings = Settings(**chosen, seed=seed)
    trainer = Trainer(settings, data, settings.total_steps(1), torch.device("cpu"))
    for group in trainer.optimizer.param_groups:
        group["fixed_norm"] = group.get("fixed_norm", False) and options["fixed_norm"]
    with torch.no_grad():
        for path, energy in trainer.model.named_parameters():
            if path.startswith("head.maps.") and not path.endswith(".0"):
                energy.mul_(options["deep_energy"] / DEEP_ENERGY)
    start = time.perf_counter()
    while trainer.step < trainer.steps:
        trainer.advance()
    return trainer.model.eval(), time.perf_counter() - start


def measure_variant(model: nn.Module, data: Dataset, options: Options) -> Results:
    """Return accuracies (%) on all test images, and denoising figures on the first 1,024 exact ones, centre crops."""
    settings = Settings(**{k: v for k, v in options.items() if k not in ("fixed_norm", "deep_energy")})
    images, labels = data.test.images(torch.arange(len(data.test)))
    side = options.get("crop_size") or images.shape[-1]
    low = (images.shape[-1] - side) // 2
    x = images[:, :, low : low + side, low : low + side]
    levels, result = NoiseLevels(), {}
    if settings.objective != "denoising":
        noisy, _ = torch_ops.sample_noise(x, levels, EVALUATION.key(1))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
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
