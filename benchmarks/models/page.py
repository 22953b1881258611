"""Write docs/results.md, and the marked figures of README.md and docs/ablations.md, from records.

    python -m benchmarks.models.page

What the page shows of a model is its card (cdn/shipped/NAME/card.json) and what `python -m benchmarks.models.keep` kept
of its training and of commands on it (docs/records/runs/NAME): their commands, tables and pictures as they were
printed. Sentences between them say what is measured, never what came out.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.models.figures import FIGURES
from benchmarks.models.hours import hours_table
from benchmarks.models.keep import IMAGES, RECORDS
from benchmarks.models.ship import (
    ABOUT,
    card,
    fill,
    found_text,
    levels_table,
    photographs_text,
    threads_text,
    trained_text,
)
from benchmarks.models.trainings import COMPARED, TWINS, command
from cdn.cli.arguments import make_parser
from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.files import write_atomically
from cdn.pictures.run_comparison import Finished, comparison_table, read_run
from cdn.pictures.tables import text_table
from cdn.run_folder.forms import read_json
from cdn.run_folder.names import CONFIG

PAGE, README, ABLATIONS = Path("docs/results.md"), Path("README.md"), Path("docs/ablations.md")
PLAN = Path("docs/records/hours.json")
HEAD = """# Results

<!-- Written by: python -m benchmarks.models.page -->
Written by `python -m benchmarks.models.page` from the records in `docs/records/` and the cards of the shipped models,
not by hand. Every table names the command that printed it, and what it ran on. One seed each, unless a table says
otherwise. How the recipe was chosen: [ablations.md](ablations.md)."""
COMPARISON = """### Beside its twins

The same data, noise and schedule for each. "minutes" is the whole command, beside other work at times: it says how long
it took, not which is faster."""
MILESTONES = """Seconds of training until an evaluation on the way, of the averaged weights on some of the test images,
first reached a figure:"""
TARGETS: dict[str, tuple[float, ...]] = {"accuracy": (0.8, 0.85, 0.88, 0.9, 0.92), "psnr_25": (28.0, 28.5, 29.0)}
HOURS = """## What the trainings take

`python -m benchmarks.models.hours --record docs/records/hours.json` timed some steps of each training on idle cores,
and multiplied; evaluations on the way come on top."""
# Pictures that trainings and evaluations draw.
KINDS = ("curves", "denoising", "reliability")
# Of trainings that are compared: a title, and what they are.
TITLES = {
    "imagenet40": (
        "Forty classes of ImageNet",
        """400 images of each for training and 50 for the test, JPEGs of 64x64 pixels, whose artifacts are learned with
        them. Both losses, cross-entropy alone, a direct denoiser, and both losses again from the weights of the shipped
        model of CIFAR-10. On two processes, a core each: before these commands stood
        `torchrun --nproc-per-node 2 --no-python`.""",
    )
}
# Of every experiment: its title, and what is measured.
EXPERIMENTS = {
    "robustness": (
        "Adversarial robustness",
        """APGD on cross-entropy and on the difference of logits ratio, white box, on the logits of images without
        noise. Signs of masked gradients are looked for: gradients of zero, a loss that does not rise with steps, starts
        that find more, queries without gradients that find more, an unbounded attack that fails.""",
    ),
    "certify": (
        "Certified radii",
        """Randomized smoothing: certified accuracy at radii in L2. A dash is a radius that so few draws cannot
        certify.""",
    ),
    "protect": (
        "A classifier that was never protected",
        """A frozen classifier behind the denoiser. Attacks are transferred from the classifier alone, or made for the
        whole, through the denoiser: weak attacks on randomized decisions, so an upper bound.""",
    ),
    "denoisers": (
        "What a class tells the denoiser",
        """PSNR without a class, and what the true class and the most probable wrong one change, in pairs.""",
    ),
    "jacobian": (
        "The Jacobian of the denoiser",
        """Trace by Hutchinson's estimate, eigenvalues by Lanczos. For an exact density the trace per value is the
        denoising loss, and the matrix is symmetric with no eigenvalue below zero.""",
    ),
    "photographs": (
        "Whole photographs",
        """Noise is added to photographs and taken off again, with its level known and estimated from the noisy image.
        The pictures are those that scikit-learn brings, by danielbuechele (CC BY 2.0).""",
    ),
    "outliers": (
        "Outliers",
        """AUROC of test images against outliers, by the log-density, its typicality, the norm of the score and the
        softmax. No claim beyond these sets.""",
    ),
    "sampling": ("Samples", """Stochastic ascent (Kadkhodaie & Simoncelli) and annealed Langevin dynamics."""),
    "restoration": ("Inverse problems", """The denoiser as the only prior (algorithm 2 of Kadkhodaie & Simoncelli)."""),
    "reconstruction": (
        "Classification by reconstruction",
        """Analysis by synthesis after Schott et al. (2018): for every class the latent that explains an image best is
        searched. The lower bound takes the search of the other classes for exact: an estimate, no certificate.""",
    ),
    "denoising_classifier": (
        "Classification by denoising error",
        """Integrated over noise levels, class-conditional denoising errors are log-likelihoods, for an exact
        density.""",
    ),
    "similarities": (
        "Which similarity classifies best",
        """Reconstructions are found by pixels and judged by each similarity, or found by it as well.""",
    ),
    "out_of_domain": (
        "Reconstructions from outside",
        """A generator of some classes, and what it makes of images that it never saw.""",
    ),
    "learning_curves": (
        "How error falls with the number of images",
        """Networks trained on both losses and on each alone, for as many steps whatever the number of images.""",
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    make_parser("benchmarks.models.page", __doc__).parse_args(argv)
    write_atomically(PAGE, page().encode())
    for path in (README, ABLATIONS):
        write_atomically(path, with_figures(path.read_text()).encode())
    print(f"wrote {PAGE} and the figures of {README} and {ABLATIONS}")


def page() -> str:
    """Return the page as Markdown."""
    parts = [part for name in TWINS for part in model_parts(name)]
    parts += [part for name in COMPARED for part in compared_parts(name)]
    return "\n\n".join([HEAD, *parts, HOURS, hours_table(read_json(PLAN))]) + "\n"


def model_parts(name: str) -> list[str]:
    """Return what there is to say of a model and its twins, nothing of one that was not trained yet."""
    facts = card(name)
    if facts is None:
        return []
    parts = [f"## {ABOUT[name]['title']}: `{name}`", fill(trained_text(facts)), fill(found_text(facts))]
    parts += [levels_table(facts), *filter(None, [photographs_text(facts).strip()])]
    parts += _pictures(name, KINDS)
    runs = kept_runs([name, *TWINS[name]])
    if len(runs) > 1:
        parts += [COMPARISON, comparison_table(runs).strip(), MILESTONES, milestones_table(runs)]
    for experiment in EXPERIMENTS:
        for run in (name, *TWINS[name]):
            record = RECORDS / run / f"{experiment}.json"
            if record.exists():
                parts += experiment_parts(run, json.loads(record.read_text()))
    return parts


def compared_parts(name: str) -> list[str]:
    """Return what there is to say of trainings that are compared, nothing of those that were not run yet."""
    runs = kept_runs([name, *COMPARED[name]])
    if not runs:
        return []
    title, text = TITLES[name]
    commands = "\n".join(f"    {command(run.name)}" for run in runs)
    pictures = [picture for run in runs for picture in _pictures(run.name, KINDS)]
    return [f"## {title}", fill(text), commands, comparison_table(runs).strip(), *pictures]


def kept_runs(names: Sequence[str]) -> list[Finished]:
    """Return the records of trainings, of those that have one."""
    return [read_run(RECORDS / name) for name in names if (RECORDS / name / CONFIG).exists()]


def milestones_table(runs: Sequence[Finished]) -> str:
    """Return when runs first reached some figures, as a table: a row per run, a dash for what it never reached."""

    def first(run: Finished, key: str, target: float) -> str | None:
        reached = (row["seconds"] for row in run.rows if row["kind"] == "evaluation" and (row.get(key) or 0) >= target)
        seconds = next(reached, None)
        return None if seconds is None else f"{seconds:,.0f}"

    wanted = [(key, target) for key, targets in TARGETS.items() for target in targets]
    titles = [f"{target:.0%}" if key == "accuracy" else f"{target:.1f} dB at 25/255" for key, target in wanted]
    return text_table(["", *titles], [[run.name, *(first(run, *goal) for goal in wanted)] for run in runs])


def experiment_parts(run: str, report: dict[str, Any]) -> list[str]:
    """Return what an experiment on a run printed, with its command and pictures."""
    title, text = EXPERIMENTS[report["experiment"]]
    machine = report["machine"]
    took = (
        f"{report['seconds']:.0f} seconds on {threads_text(machine['threads'])} of {machine['device']} "
        f"({machine['capability']}), torch {machine['torch']}, {report['date']}, commit `{machine['commit']}`."
    )
    printed = [line if line.lstrip().startswith("|") else fill(line) for line in report["text"]]
    pictures = _pictures(run, (report["experiment"],))
    return [f"### {title}", fill(text), f"    {report['command']}", *printed, fill(took), *pictures]


def _pictures(run: str, kinds: Sequence[str]) -> list[str]:
    """Return links to the pictures of a run that are of some kinds."""
    found = [path for kind in kinds for end in ("", "-*") for path in sorted(IMAGES.glob(f"{run}-{kind}{end}.png"))]
    return [f"![{path.stem.replace('-', ', ')}](images/{path.name})" for path in found]


def with_figures(text: str) -> str:
    """Return a text whose marked figures are made anew.

    Raises:
        CDNError: a mark that nothing is known for.
    """

    def replaced(match: re.Match[str]) -> str:
        name = match[1]
        if name not in FIGURES:
            raise CDNError(f"figures: {name}: expected one of {', '.join(FIGURES)}")
        return f"<!-- figures: {name} -->\n{FIGURES[name]()}\n<!-- end -->"

    return re.sub(r"<!-- figures: (\w+) -->\n.*?<!-- end -->", replaced, text, flags=re.DOTALL)


if __name__ == "__main__":
    run_command(main)
