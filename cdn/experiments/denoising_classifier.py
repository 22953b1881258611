"""Classify test images by how well they are denoised given each class, and attack that.

Noise is added at several levels, the network takes it away given each class in turn, and the class with the smallest
error, integrated over levels, wins (Li et al. 2023; Clark & Jaini 2023). Beside it stand the softmax of the same
network and its vote on images denoised from the levels of --levels. All are measured on clean images, on noisy ones, on
images that fool the softmax (transferred), and on images made for them: projected gradient descent through the
denoisers, over fresh noise at every step. "either attack" asks to withstand both. Prints tables, and writes report.json
and picture.png into RUN/denoising_classifier.

A decision costs as many forwards as nodes times draws, and as many backwards for each class: classification by
denoising is hundreds of times slower than the softmax.

Example:
  python -m cdn.experiments.denoising_classifier runs/cifar10 --limit 200 --nodes 8 --draws 8
"""

import argparse
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn
from tqdm import tqdm

import cdn_kernels
from cdn.cli.arguments import noise_level, nonnegative_float, positive_int, run_command
from cdn.commands.denoise import parse_sigma
from cdn.evaluation.evaluate import EVALUATION
from cdn.experiments.protect import REFERENCE, attack
from cdn.experiments.runner import Experiment, Results, make_parser, text_table
from cdn.methods.attacks.ball import NORMS, Ball
from cdn.methods.denoising_errors import DenoisingErrorClassifier, Weight, integrate, noisy_copies
from cdn.methods.quadrature import level_nodes
from cdn.methods.smoothing import LevelVote
from cdn.methods.smoothing.randomized import NoisyClassifier, Randomized
from cdn.model.finite import decided
from cdn.model.modes import evaluating
from cdn.pictures.style import BLUE, GREY, ORANGE, SEQUENCE, named, tidy
from cdn_kernels import Noise
from cdn_kernels.noise import SEEDS

SOFTMAX, VOTE, ERROR = "softmax", "vote", "denoising error"
TRANSFERRED, ATTACKED, EITHER = "transferred", "attacked", "either attack"
# Between the keys of two measurements: more than any of them uses.
STRIDE = 1 << 20


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    experiment = Experiment(args)
    run = experiment.run
    experiment.require_density(classes=True)
    x, labels = experiment.test_images()
    with evaluating(run.model, args.precision):
        classifiers = _classifiers(experiment)
        sets, attacked = _image_sets(experiment, classifiers, x, labels)
        found, clean = levels_and_draws(experiment, x, labels)
        right = {SOFTMAX: {}, VOTE: {}, ERROR: {"clean": clean}}
        plan = [(name, kind) for name in right for kind in (*sets, ATTACKED) if kind not in right[name]]
        with tqdm(plan, leave=False, disable=not experiment.progress) as bar:
            for name, kind in bar:
                bar.set_description(f"{name}, {kind}")
                images = attacked[name] if kind == ATTACKED else sets[kind]
                right[name][kind] = is_right(classifiers[name][0], images, labels, args)
    for hits in right.values():
        # An attack through a classifier may well be weaker than one that only passes by it.
        hits[EITHER] = hits[TRANSFERRED] & hits[ATTACKED]
    shares = {name: {kind: float(hit.double().mean()) for kind, hit in hits.items()} for name, hits in right.items()}
    results = dict(images=len(x), attacked_images=len(attacked[ERROR]), accuracy=shares, **found)
    print(
        f"{len(x)} test images of {run.dataset.name}, the first {len(attacked[ERROR])} attacked ({args.norm}, "
        f"radius {args.radius:g}, {args.attack_steps} steps); {args.nodes} levels, {args.draws} draws"
    )
    print(accuracy_table(results), end="\n\n")
    print(level_table(results), end="\n\n")
    print(draw_table(results))
    experiment.save_figure(picture(results, args))
    experiment.write(results)


def is_right(judge: NoisyClassifier, images: Tensor, labels: Tensor, args: argparse.Namespace) -> Tensor:
    """Return whether a classifier, a function of images and a key, is right about each of the first images, [N]."""
    with torch.no_grad():
        predicted = torch.cat(
            [
                decided(judge(part, Noise(args.seed, EVALUATION + number * STRIDE)))
                for number, part in enumerate(images.split(args.batch_size))
            ]
        )
    return predicted == labels[: len(predicted)]


def levels_and_draws(experiment: Experiment, x: Tensor, labels: Tensor) -> tuple[Results, Tensor]:
    """Return accuracies by noise level and by number of draws, and which clean images are classified rightly, [N].

    At each level the softmax, averaged over the same noisy images, stands beside the error.
    """
    args, run = experiment.args, experiment.run
    module = DenoisingErrorClassifier(run.model, run.levels, nodes=args.nodes, draws=args.draws)
    error_parts: list[Tensor] = []
    vote_parts: list[Tensor] = []
    with torch.no_grad():
        for number, part in enumerate(x.split(args.batch_size)):
            key = Noise(args.seed, EVALUATION + number * STRIDE)
            error_parts.append(module.errors(part, key))
            vote_parts.append(
                torch.stack(
                    [
                        run.model(y).log_softmax(1)
                        for _, y in noisy_copies(part, run.levels, key, args.nodes, args.draws)
                    ]
                ).unflatten(0, error_parts[-1].shape[:2])
            )
    errors, votes = torch.cat(error_parts, 2), torch.cat(vote_parts, 2)
    right = lambda logits: decided(logits) == labels
    share = lambda logits: right(logits).double().mean(-1).tolist()
    counts = sorted({*(2**k for k in range(args.draws.bit_length())), args.draws})
    by_draws = [-integrate(errors[:, :n], run.levels, _weight(args)) for n in counts]
    return dict(
        sigma=[sigma for sigma, _ in level_nodes(run.levels, args.nodes)],
        by_level={ERROR: share(-errors.mean(1)), SOFTMAX: share(votes.mean(1))},
        by_draws=dict(draws=counts, accuracy=list(map(share, by_draws))),
    ), right(by_draws[-1])


def accuracy_table(results: Results) -> str:
    """Return the accuracies of all classifiers on all sets of images, as text."""
    kinds = list(results["accuracy"][SOFTMAX])
    return text_table(
        ["accuracy", *kinds],
        [[name, *(f"{shares[kind]:.1%}" for kind in kinds)] for name, shares in results["accuracy"].items()],
    )


def level_table(results: Results) -> str:
    """Return the accuracies at every noise level by itself, as text."""
    rows = zip(results["sigma"], *results["by_level"].values())
    return text_table(
        ["at sigma alone", ERROR, "softmax, same noise"],
        [[f"{sigma:.3f}", *(f"{share:.1%}" for share in shares)] for sigma, *shares in rows],
    )


def draw_table(results: Results) -> str:
    """Return the accuracy of the integrated error by the number of draws per level, as text."""
    found = results["by_draws"]
    return text_table(["draws per level", *found["draws"]], [[ERROR, *(f"{share:.1%}" for share in found["accuracy"])]])


def picture(results: Results, args: argparse.Namespace) -> Figure:
    """Draw accuracy by kind of image, by noise level, and by number of draws."""
    figure = Figure(figsize=(12.5, 3.7), layout="constrained")
    bars, levels, draws = figure.subplots(1, 3, width_ratios=(5, 4, 3))
    kinds = list(results["accuracy"][SOFTMAX])
    colors = {SOFTMAX: GREY, VOTE: BLUE, ERROR: ORANGE}
    for k, (name, shares) in enumerate(results["accuracy"].items()):
        drawn = bars.bar(
            [place + 0.27 * (k - 1) for place in range(len(kinds))],
            [100 * shares[kind] for kind in kinds],
            0.25,
            color=colors[name],
            label=named(name),
        )
        bars.bar_label(drawn, fmt="%.0f", fontsize=7)
    bars.set_xticks(range(len(kinds)), [kind.replace(", ", ",\n") for kind in kinds])
    tidy(bars, title=f"accuracy (%), attacks in {args.norm.replace('l', 'L')} of radius {args.radius:g}")
    bars.set_ylim(0, 119)
    bars.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    for name, color, label in ((ERROR, ORANGE, ERROR), (SOFTMAX, SEQUENCE[0], "softmax of the same noisy images")):
        levels.plot(results["sigma"], results["by_level"][name], "o-", color=color, markersize=4, label=named(label))
    levels.set_xscale("log")
    tidy(levels, title=f"each noise level by itself, {args.draws} draws", xlabel="σ (images in [0, 1])")
    found, clean = results["by_draws"], results["accuracy"][SOFTMAX]["clean"]
    draws.plot(found["draws"], found["accuracy"], "o-", color=ORANGE, markersize=4, label=named(ERROR))
    draws.axhline(clean, color=SEQUENCE[0], linewidth=1, linestyle="--", label="softmax of clean images")
    draws.set_xscale("log", base=2)
    draws.set_xticks(found["draws"], found["draws"])
    tidy(draws, title=f"all {args.nodes} levels together", xlabel="draws of noise per level")
    for axes in (levels, draws):
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=False, fontsize=8, loc="lower center")
    return figure


def _classifiers(experiment: Experiment) -> dict[str, tuple[NoisyClassifier, nn.Module]]:
    """Return by name what judges, a function of images and a key, and what is attacked, a module."""
    args, run = experiment.args, experiment.run
    reference, _ = experiment.images(run.dataset.train, REFERENCE)
    vote = LevelVote(run.model, run.model, args.levels, reference, Noise((args.seed + 2) % SEEDS))
    error = lambda nodes, draws: DenoisingErrorClassifier(
        run.model, run.levels, nodes=nodes, draws=draws, weight=_weight(args)
    )
    # An attack draws afresh at each step, so a few levels are enough for it.
    return {
        SOFTMAX: (lambda images, key: run.model(images), run.model),
        VOTE: (vote, Randomized(vote, 1, args.seed)),
        ERROR: (error(args.nodes, args.draws), Randomized(error(args.attack_nodes, 1), 1, args.seed)),
    }


def _image_sets(
    experiment: Experiment, classifiers: dict[str, tuple[NoisyClassifier, nn.Module]], x: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return by name the sets that all judge, and the images that were made for each classifier."""
    args = experiment.args
    noisy = {
        f"σ = {round(255 * sigma)}/255": cdn_kernels.sample_noise(x, sigma, Noise(args.seed, EVALUATION))[0]
        for sigma in args.sigmas
    }
    few, few_labels = x[: args.attacked], labels[: args.attacked]
    attacked = {}
    with tqdm(classifiers.items(), leave=False, disable=not experiment.progress) as bar:
        for name, (_, module) in bar:
            bar.set_description(f"attack on {name}")
            attacked[name] = attack(module, few, few_labels, Ball(args.norm, args.radius), args)
    return {"clean": x} | noisy | {TRANSFERRED: attacked[SOFTMAX]}, attacked


def _weight(args: argparse.Namespace) -> Weight:
    return lambda sigma: sigma**-args.power


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("denoising_classifier", __doc__, limit=64, batch_size=16)
    add = parser.add_argument
    add(
        "--nodes", metavar="N", type=positive_int, default=6, help="noise levels of the integral (default: %(default)s)"
    )
    add("--draws", metavar="N", type=positive_int, default=4, help="draws of noise per level (default: %(default)s)")
    add(
        "--power",
        metavar="P",
        type=nonnegative_float,
        default=2.0,
        help="errors count with 1/sigma^P; 2 makes them likelihoods (default: %(default)s)",
    )
    add(
        "--levels",
        metavar="S",
        type=noise_level,
        nargs="+",
        default=[0.12, 0.25, 0.5],
        help="noise levels of the vote (default: 0.12 0.25 0.5)",
    )
    add(
        "--sigmas",
        metavar="S",
        type=parse_sigma,
        nargs="+",
        default=[25 / 255],
        help="noise levels of noisy images, as 0.1 or 25/255 (default: 25/255)",
    )
    add(
        "--attacked",
        metavar="N",
        type=positive_int,
        default=32,
        help="attack the first N of the images (default: %(default)s)",
    )
    add("--attack-steps", metavar="N", type=positive_int, default=5, help="of gradient ascent (default: %(default)s)")
    add(
        "--attack-nodes",
        metavar="N",
        type=positive_int,
        default=4,
        help="noise levels that a step of the attack looks at, one draw each (default: %(default)s)",
    )
    add("--norm", choices=NORMS, default="l2", help="of the attacks (default: %(default)s)")
    add("--radius", metavar="R", type=nonnegative_float, default=0.5, help="of the attacks (default: %(default)s)")
    return parser


if __name__ == "__main__":
    run_command(main)
