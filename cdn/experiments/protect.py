"""Protect a classifier that was never trained on noise by the denoiser of a run, and attack what protects it.

Noise of level --sigma is added, RUN takes it away, the frozen classifier sees what is left (denoised smoothing, Salman
et al. 2020); "purified" takes it away in several steps; "vote" denoises from several levels and weights
each by how typical its log p(y) is of clean images. All are measured on clean images, on images that fool the bare
classifier (transferred), and on images made for them: projected gradient descent through the denoiser, over fresh noise
at every step. The bare classifier and the denoised one are also certified, beside RUN itself.

Example:
  python -m cdn.experiments.protect runs/cifar10 --classifier runs/resnet-plain --sigma 0.25 --radius 0.5
"""

from typing import cast

from cdn.cli.process import run_command
from cdn.errors import CDNError
from cdn.experiments.runner import CLASSES, DENOISER, Experiment, Findings, Session
from cdn.methods.attacks.ball import Ball
from cdn.methods.attacks.gradient import strongest
from cdn.methods.judges import is_right
from cdn.methods.smoothing.certificate import certified_shares
from cdn.methods.smoothing.defences import ALONE, DENOISED, VOTE, System, defences
from cdn.methods.smoothing.protected import Protected
from cdn.model.inputs import sigma_text
from cdn.noise_keys import EVALUATION
from cdn.pictures.defences import defence_figure, defence_table, purified_figure

# Clean training images that tell the vote what is typical, and rows of images.png.
REFERENCES, ROWS = 256, 8


def measure(session: Session) -> Findings:
    """Attack and certify every system."""
    args = session.args
    x, labels = session.test_images()
    systems, ball = _systems(session), Ball(args.norm, args.radius)
    how = dict(steps=args.attack_steps, seed=args.seed, batch_size=args.batch_size)
    results, fooling = {}, {}
    with session.evaluating(), session.bar(systems.items()) as bar:
        for name, (attacked, judged, smoothed) in bar:
            bar.set_description(name)
            fooling[name] = strongest(attacked, x, labels, ball, **how)
            right = lambda images, judged=judged: is_right(judged, images, labels, args.seed, args.batch_size)
            share = lambda images: float(right(images).double().mean())
            found = dict(clean=share(x), transferred=share(fooling[ALONE]), attacked=share(fooling[name]))
            draws = dict(n0=args.n0, n=args.n, alpha=args.alpha, batch_size=args.batch_size, seed=args.seed)
            draws["precision"] = args.precision
            sure = None if smoothed is None else certified_shares(smoothed, x, labels, args.sigma, args.radii, **draws)
            results[name] = found | dict(certified=sure)
    attack = f"attacks in {args.norm} of radius {args.radius:g}, {args.attack_steps} steps of {args.eot} draws"
    about = f"{len(x)} test images of {session.run.dataset.name}, sigma {sigma_text(args.sigma)}; {attack}"
    figures = {"picture.png": lambda: defence_figure(results, args.sigma, args.norm, args.radius)}
    if DENOISED in systems:
        made = {"clean": x, "for it alone": fooling[ALONE], "for it denoised": fooling[DENOISED]}
        few = {title: images[:ROWS] for title, images in made.items()}
        protected = cast(Protected, systems[DENOISED].certified)
        figures["images.png"] = lambda: purified_figure(few, protected, EVALUATION.key(args.seed))
    shown = {name: result for name, result in results.items() if name in (args.systems or systems)}
    text = f"{about}: accuracy (%), certified at L2 radii", defence_table(shown, args.radii)
    return Findings(shown, text, figures)


def _systems(session: Session) -> dict[str, System]:
    """Return the systems that the run allows and the options name; the classifier alone is always there."""
    args, run = session.args, session.run
    classifier = session.open(args.classifier, CLASSES).model
    reference = session.images(run.dataset.train, REFERENCES)[0] if run.has_density else None
    how = dict(steps=args.steps, draws=args.draws, attack_draws=args.eot, seed=args.seed)
    systems = defences(classifier, run.model, args.sigma, args.levels, reference, itself=run.has_classes, **how)
    for name in args.systems or ():
        if name not in systems:
            raise CDNError(f"--systems {name}: {run.path} has no {'log-density' if name == VOTE else 'classes'}")
    return {name: systems[name] for name in systems if name in (args.systems or systems) or name == ALONE}


main = Experiment("protect", __doc__, measure, needs=(DENOISER,), limit=64, batch_size=64)

if __name__ == "__main__":
    run_command(main)
