"""The marked figures of README.md and docs/ablations.md, made of records."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness.record import Record, read
from benchmarks.models.ship import ABOUT, card, fill, threads_text
from cdn.evaluation import SIGMAS
from cdn.model.inputs import sigma_key, sigma_text
from cdn.pictures.tables import text_table
from cdn.run_folder.journal import read_rows
from cdn.training.studies import SECONDS_VARIANTS, study_table

RESULTS, RECORDS = Path("benchmarks/results"), Path("docs/records")
STUDY, PATCHES = RECORDS / "seconds.jsonl", RECORDS / "patches.jsonl"
SIZES = "cpu-sizes.json"
HALF_CLEAN = "cpu-clean.json", "cpu-xeon-float32.json", "cpu-xeon-bf16.json", "cpu-xeon-clean.json"
CLASSIFIER, EAGER, KEPT = "(eager step of a classifier)", "eager", "pages kept"


def models() -> str:
    """Return what the shipped models do, a sentence each."""
    return "\n".join(_model(facts) for facts in map(card, ABOUT) if facts)


def _model(facts: dict[str, Any]) -> str:
    figures = facts["figures"]
    levels = ", ".join(sigma_text(sigma) for sigma in SIGMAS)
    psnr = _series(figures, "psnr")
    classified = (
        f"{figures['accuracy']:.2%} of clean test images classified, " if figures.get("accuracy") is not None else ""
    )
    if whole := facts.get("photographs"):
        known, blind = (
            ", ".join(f"{row[key]:.2f}" for row in whole["mean"].values()) for key in ("psnr_known", "psnr_blind")
        )
        classified += (
            f"on {whole['count']} whole photographs ({whole['name']}) PSNR {known} dB, blind {blind} dB; on patches "
        )
    return fill(
        f"* `{facts['name']}`: {classified}PSNR {psnr} dB at sigma {levels} (noisy: {_series(figures, 'psnr_noisy')} "
        f"dB), {facts['parameters']:,} parameters, trained in {facts['seconds'] / 60:.0f} minutes on "
        f"{threads_text(facts['threads'])} of {facts['hardware']}, torch {facts['torch']}, {facts['date']}."
    )


def _series(figures: dict[str, Any], key: str) -> str:
    return ", ".join(f"{figures[f'{key}_{sigma_key(sigma)}']:.2f}" for sigma in SIGMAS)


def speed() -> str:
    """Return how the joint step compares with eager PyTorch at its best, its freed pages kept."""
    sizes = read(RESULTS / SIZES)
    ranges = (
        f"{min(best):.1f} to {max(best):.1f} times as fast in {precision}"
        for precision in ("float32", "bf16")
        for best in [list(_best(sizes.of("size"), precision))]
    )
    text = (
        "The joint step against eager PyTorch at its best, the faster layout with its freed pages kept, on "
        f"{_where(sizes)}, from width 8 and one image of 8x8 to width 128 and 16 of 64x64: {' and '.join(ranges)}, in "
        "all shapes that were compared. With half of the images clean, width 64 and 64 images:"
    )
    header = ["", "precision", "times as fast as eager", "of the time of PyTorch's step of a classifier alone"]
    rows = [row for file in HALF_CLEAN for row in _half_clean(read(RESULTS / file))]
    return f"{fill(text)}\n\n{text_table(header, rows)}"


def _half_clean(record: Record) -> list[list[str]]:
    return [
        [
            _where(record),
            precision := result["facts"]["precision"],
            f"{next(iter(_best([result], precision))):.1f}",
            f"{1 / result['ratios'][CLASSIFIER].median:.2f}",
        ]
        for result in record.of("joint step, half clean")
    ]


def _best(results: Iterable[dict[str, Any]], precision: str) -> Iterable[float]:
    """Return how many times as long eager PyTorch takes at its best, of the results in a precision."""
    for result in results:
        if result["facts"]["precision"] != precision:
            continue
        if times := [r.median for name, r in result["ratios"].items() if name.startswith(EAGER) and KEPT in name]:
            yield min(times)


def _where(record: Record) -> str:
    machine = record.machine
    return (
        f"{machine['cores']} cores of {machine['device']} ({machine['convolutions'] or machine['capability']}), torch "
        f"{machine['torch']}, {record.date[:10]}"
    )


def seconds() -> str:
    """Return the study of what a recipe gains in equal time."""
    return study_table(read_rows(STUDY), SECONDS_VARIANTS)


def patches() -> str:
    """Return what patches and networks gain for a denoiser of photographs."""
    rows = read_rows(PATCHES)
    header = ["patches", "side", "network", "sigma", "steps", "batch", "seconds", "photographs"]
    levels = list(rows[0]["mean"])
    cells = [
        [
            row["patches"],
            row["side"],
            f"{row['model']}, width {row['width']}",
            "{:g} to {:g}".format(*row["sigma"]),
            row["steps"],
            row["batch_size"],
            row["seconds"],
            row["photographs"],
            *("{psnr_known:.2f}, {psnr_blind:.2f}".format(**row["mean"][level]) for level in levels),
        ]
        for row in rows
    ]
    return text_table([*header, *(f"{level}, known, blind" for level in levels)], cells)


# By the name of the mark.
FIGURES: dict[str, Callable[[], str]] = {"models": models, "speed": speed, "seconds": seconds, "patches": patches}
