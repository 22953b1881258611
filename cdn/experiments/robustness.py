"""Draw how many images a model still classifies rightly under attacks of growing strength, in L-infinity and in L2.

    python -m cdn.experiments.robustness runs/cifar10 --against runs/resnet runs/jem --limit 500
    torchrun --nproc-per-node 2 -m -- cdn.experiments.robustness runs/cifar10   # each process attacks its share

Attacks the logits of every run on the same test images, without noise, within balls of rising radius and within [0, 1].
An image counts as robust at a radius if none of the attacks, restarts and targets has fooled the model there or at a
smaller one. Then looks for signs that gradients are masked, which would make a model look more robust than it is.
Prints tables, and writes report.json and picture.png (after figure 4 of arXiv 2410.03505) into RUN/robustness.
"""

from typing import Any

from torch import Tensor, nn

from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.experiments.runner import Experiment, Findings, Session
from cdn.files import Results
from cdn.methods.attacks import masking_checks, sweep
from cdn.pictures.robust_accuracy import UNITS, curve_table, robustness_figure, verdict_table


def measure(session: Session) -> Findings:
    """Attack every run in every norm, and look for masked gradients."""
    args, runs = session.args, session.classifiers()
    x, labels = session.test_images()
    results: Results = dict(images=len(x), runs={})
    for name, run in runs.items():
        with session.evaluating(run.model):
            try:
                results["runs"][name] = {norm: attacked(session, run.model, x, labels, norm) for norm in args.norms}
            except ValueError as error:
                raise CDNError(f"{run.path}: {error}") from None
    starts = f", {args.restarts} restarts" if args.restarts > 1 else ""
    aim = f", aimed at {args.targeted} classes" if args.targeted else ""
    about = f"{' + '.join(args.attack)}, {args.steps} steps{starts}{aim}"
    tables = [curve_table(results, norm) for norm in args.norms]
    tables += [verdict_table(results, args.norms)] if args.checks else []
    return Findings(results, tables, {"picture.png": lambda: robustness_figure(results, args.norms, about)})


def attacked(session: Session, model: nn.Module, x: Tensor, labels: Tensor, norm: str) -> Results:
    """Return robust accuracies of a model in one norm, and the verdicts on its gradients."""
    args, unit = session.args, UNITS[norm]
    radii = sorted(args.radii_linf if norm == "linf" else args.radii_l2)
    options: dict[str, Any] = dict(steps=args.steps, seed=args.seed, batch_size=args.batch_size)
    options["processes"] = session.processes
    how = dict(restarts=args.restarts, targeted=args.targeted, progress=session.progress)
    curve = sweep(model, x, labels, norm, [radius / unit for radius in radii], args.attack, **how, **options)
    result: Results = dict(radii=radii, clean=curve.clean_accuracy, robust=curve.robust_accuracy, checks=[])
    right = curve.broken_at.nonzero()[: args.checks, 0]
    if len(right):
        _, radius = min((abs(share - curve.clean_accuracy / 2), r) for share, r in zip(curve.robust_accuracy, radii))
        options["queries"] = 10 * args.steps
        verdicts = masking_checks(model, x[right], labels[right], norm, radius / unit, **options)
        result |= dict(check_radius=radius, checks=[verdict._asdict() for verdict in verdicts])
    return result


main = Experiment("robustness", __doc__, measure, against=True)

if __name__ == "__main__":
    run_command(main, divided=True)
