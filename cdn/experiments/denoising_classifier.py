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

from cdn.cli.process import run_command
from cdn.experiments.runner import CLASSES, DENSITY, Experiment, Findings, Session
from cdn.methods.attacks.ball import Ball
from cdn.methods.attacks.gradient import strongest
from cdn.methods.judges import ERROR, SOFTMAX, by_levels_and_draws, is_right, judges
from cdn.model.inputs import sigma_text
from cdn.noise_keys import EVALUATION
from cdn.pictures.defences import accuracy_table, draw_table, judges_figure, level_table
from cdn_kernels import sample_noise

TRANSFERRED, ATTACKED, EITHER = "transferred", "attacked", "either attack"
# Clean training images that tell the vote what is typical.
REFERENCES = 256


def measure(session: Session) -> Findings:
    """Attack every judge, and let all of them judge all sets of images."""
    args, run = session.args, session.run
    x, labels = session.test_images()
    reference, _ = session.images(run.dataset.train, REFERENCES)
    how = dict(nodes=args.nodes, draws=args.draws, weight=lambda sigma: sigma**-args.power, seed=args.seed)
    with session.evaluating():
        others = dict(vote_levels=args.levels, attack_nodes=args.attack_nodes)
        found = judges(run.model, run.levels, reference, **others, **how)
        few, ball = slice(args.attacked), Ball(args.norm, args.radius)
        attacked = {
            name: strongest(
                judge.attacked,
                x[few],
                labels[few],
                ball,
                steps=args.attack_steps,
                seed=args.seed,
                batch_size=args.batch_size,
            )
            for name, judge in session.bar(found.items())
        }
        noise = EVALUATION.key(args.seed)
        sets = {"clean": x} | {f"σ = {sigma_text(s)}": sample_noise(x, s, noise)[0] for s in args.sigmas}
        sets[TRANSFERRED] = attacked[SOFTMAX]
        curves, clean = by_levels_and_draws(run.model, x, labels, run.levels, batch_size=args.batch_size, **how)
        right = {name: {"clean": clean} if name == ERROR else {} for name in found}
        for name, judge in session.bar(found.items()):
            for kind, images in (sets | {ATTACKED: attacked[name]}).items():
                if kind not in right[name]:
                    right[name][kind] = is_right(judge.decide, images, labels, args.seed, args.batch_size)
    for hits in right.values():
        # Images made for another classifier may well fool more often than those made for this one.
        hits[EITHER] = hits[TRANSFERRED] & hits[ATTACKED]
    shares = {name: {kind: float(hit.double().mean()) for kind, hit in hits.items()} for name, hits in right.items()}
    results = dict(images=len(x), attacked_images=len(x[few]), accuracy=shares, **curves)
    about = (
        f"{len(x)} test images of {run.dataset.name}, the first {len(x[few])} attacked ({args.norm}, "
        f"radius {args.radius:g}, {args.attack_steps} steps); {args.nodes} levels, {args.draws} draws"
    )
    tables = accuracy_table(results), level_table(results), draw_table(results)
    figure = lambda: judges_figure(results, args.norm, args.radius, args.nodes, args.draws)
    return Findings(results, (about, *tables), {"picture.png": figure})


main = Experiment("denoising_classifier", __doc__, measure, needs=(DENSITY, CLASSES), limit=64, batch_size=16)

if __name__ == "__main__":
    run_command(main)
