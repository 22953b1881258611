"""The options of every experiment on a run, by its name and by the titles of groups."""

from collections.abc import Mapping
from pathlib import Path

from cdn.cli.arguments import (
    Option,
    fraction,
    named_folder,
    noise_level,
    nonnegative_float,
    positive_float,
    positive_int,
    probability,
    seed_number,
    tile_side,
    whole_number,
)
from cdn.methods.attacks import ATTACKS, NORMS
from cdn.methods.distances.by_similarity import NAMES
from cdn.methods.distances.dissimilarity import FEATURES, PIXELS, SSIM
from cdn.methods.learning_bounds import OBJECTIVES
from cdn.methods.prior.draw import SAMPLERS
from cdn.methods.prior.operators import PROBLEMS
from cdn.methods.smoothing.defences import SYSTEMS
from cdn.methods.spectrum.spectrum import DENSE_SIZE
from cdn.methods.synthesis.beside_another import HELD_OUT

OUTLIERS = Option("--outliers", named_folder, [], "further sets, NAME=FOLDER, of images or strips", many=True)
RADII = (0, 0.1, 0.2, 0.3, 0.4, 0.5)
SIGMAS = Option("--sigmas", noise_level, [15 / 255, 25 / 255, 50 / 255, 100 / 255], "noise levels", many=True)
ATTACK = (
    Option("--norm", NORMS, "l2", "norm in which attacks are bounded"),
    Option("--radius", nonnegative_float, 0.5, "largest change by an attack, where white is 1"),
)
OPTIONS: Mapping[str, Mapping[str, tuple[Option, ...]]] = {
    "denoisers": {
        "": (
            SIGMAS,
            Option("--shown", noise_level, 50 / 255, "noise level of denoisers.png"),
            Option("--rows", positive_int, 6, "images in denoisers.png, the first of the test split"),
            Option(
                "--magnification", positive_float, None, "of the differences (default: those of the wrong class fit)"
            ),
        )
    },
    "denoising_classifier": {
        "": (
            Option("--nodes", positive_int, 6, "noise levels of the integral"),
            Option("--draws", positive_int, 4, "draws of noise per level"),
            Option("--power", nonnegative_float, 2.0, "errors count with 1/sigma^X; 2 makes them likelihoods"),
            Option("--levels", noise_level, [0.12, 0.25, 0.5], "noise levels of the vote", many=True),
            Option("--sigmas", noise_level, [25 / 255], "noise levels of noisy images, as 0.1 or 25/255", many=True),
            Option("--attacked", positive_int, 32, "attack the first N of the images"),
            Option("--attack-steps", positive_int, 5, "steps of gradient ascent"),
            Option("--attack-nodes", positive_int, 4, "noise levels that a step of the attack looks at, one draw each"),
            *ATTACK,
        )
    },
    "jacobian": {
        "": (
            SIGMAS,
            Option("--probes", positive_int, 8, "random probes per image, at least 2"),
            Option("--image", whole_number, 0, "test image whose spectrum is shown"),
            Option("--largest", positive_int, 6, "eigenpairs at the upper end"),
            Option("--smallest", whole_number, 3, "eigenpairs at the lower end"),
            Option("--krylov", positive_int, 512, "products at which the Lanczos iteration stops"),
            Option(
                "--no-dense", bool, False, f"skip the dense Jacobian, of d products (always above d = {DENSE_SIZE})"
            ),
        )
    },
    "out_of_domain": {
        "": (
            Option(
                "--inside", positive_int, None, "train the generator on the first N classes (default: half of them)"
            ),
            OUTLIERS,
            Option("--sigma", noise_level, 25 / 255, "noise level at which the arbiter rates"),
        ),
        "generator": (
            Option("--train-images", positive_int, 5000, "images to train on, at most"),
            Option("--train-steps", positive_int, 1500, "steps of the training"),
            Option("--train-batch", positive_int, 64, "images per step"),
            Option("--latents", positive_int, 64, "dimensions of the latent: many, to overpower it"),
            Option("--width", positive_int, 256, "width of the widest hidden layer"),
            Option(
                "--pixel-sigma", positive_float, 0.05, "standard deviation of the pixels; a small one uses the latent"
            ),
        ),
        "search": (
            Option("--steps", positive_int, 100, "steps of Adam"),
            Option("--starts", positive_int, 1, "latents to start from: the encoder's, and the best of random ones"),
            Option("--rate", positive_float, 0.1, "size of the first step"),
            Option("--free", positive_float, 1e-3, "weight of the density N(0, I) on the latent in the free search"),
            Option("--strength", positive_float, 30.0, "weight of it in the others; 1 is that of the training"),
        ),
    },
    "outliers": {"": (OUTLIERS, Option("--sigma", noise_level, 25 / 255, "noise level of the second measurement"))},
    "photographs": {
        "": (
            Option("--images", str, None, "folder of the photographs", required=True),
            Option(
                "--tile",
                tile_side,
                None,
                "denoise overlapping tiles of N x N pixels, to save memory: close to the whole",
            ),
            Option("--show", positive_int, 3, "photographs in the picture, from the first on"),
        )
    },
    "protect": {
        "": (
            Option("--classifier", Path, None, "the run whose model is protected, frozen", required=True),
            Option("--systems", SYSTEMS, None, "measure only these (default: all that RUN allows)", many=True),
            Option("--sigma", noise_level, 0.25, "noise level"),
            Option("--steps", positive_int, 3, "steps of purification"),
            Option("--levels", noise_level, [0.12, 0.25, 0.5], "noise levels that vote", many=True),
            *ATTACK,
            Option("--attack-steps", positive_int, 10, "steps of gradient ascent"),
            Option("--eot", positive_int, 2, "draws of noise per step of an attack"),
            Option("--draws", positive_int, 16, "draws of noise per decision"),
            Option("--n0", positive_int, 20, "draws that guess a class"),
            Option("--n", positive_int, 200, "draws that certify it"),
            Option("--alpha", probability, 0.001, "probability that a certificate is wrong"),
            Option("--radii", nonnegative_float, RADII, "radii of certified accuracies", many=True),
        )
    },
    "reconstruction": {
        "": (Option("--side", positive_int, None, "enlarge the images to N pixels; RUN sees them shrunk back"),),
        "generators": (
            Option("--train-images", positive_int, 10_000, f"the last of them, at most {HELD_OUT}, only calibrate"),
            Option("--latents", positive_int, 8, "latent dimensions"),
            Option("--width", positive_int, 128, "width of the widest layer"),
            Option("--sigma", positive_float, None, "standard deviation of the pixels (default: learned)"),
            Option("--fit-steps", positive_int, 500, "steps of training"),
            Option("--fit-rate", positive_float, 2e-3, "learning rate"),
        ),
        "search": (
            Option("--search-steps", whole_number, 30, "steps of Adam from each start"),
            Option("--starts", positive_int, 2, "latents to start from: the encoder's, and the best of the draws"),
            Option("--draws", whole_number, 64, "random latents, of which the best are started from"),
        ),
        "attacks": (
            Option("--attack-images", positive_int, 50, "attack the first N test images"),
            Option("--attack-steps", positive_int, 20, "steps of each attack"),
            Option("--radii-l2", positive_float, (0.25, 0.5, 1), "largest changes in L2, where white is 1", many=True),
            Option("--radii-linf", positive_float, (8, 16, 32), "in L-infinity, in grey levels", many=True),
        ),
    },
    "restoration": {
        "": (
            Option("--problems", PROBLEMS, list(PROBLEMS), "kinds of measurements to restore from", many=True),
            Option("--samples", positive_int, 4, "restorations per image, whose mean is taken too"),
            Option(
                "--block", positive_int, None, "inpainting: side of the lost block (default: 3/8 of the shorter side)"
            ),
            Option("--ratio", fraction, 0.3, "missing-pixels, compressive-sensing: measured share"),
            Option("--factor", positive_int, 2, "super-resolution: side of the squares that are averaged"),
            Option("--blur", positive_float, 1.5, "deblurring: standard deviation of the Gaussian, in pixels"),
            Option("--step", fraction, 0.1, "share of the way that the first step takes"),
            Option("--beta", fraction, 0.1, "1 puts no noise back; the smaller, the slower and the better"),
            Option("--stop", noise_level, 0.01, "noise level at which a restoration ends"),
            Option("--max-steps", positive_int, 1000, "largest number of steps"),
        )
    },
    "robustness": {
        "attack": (
            Option(
                "--attack",
                ATTACKS,
                ["apgd-ce", "apgd-dlr"],
                f"attacks to try in turn, of {', '.join(ATTACKS)}",
                many=True,
            ),
            Option("--steps", positive_int, 50, "steps of each attack"),
            Option("--restarts", positive_int, 1, "random starts of each attack"),
            Option("--targeted", whole_number, 0, "aim at each of the N most likely wrong classes in turn"),
            Option("--norms", NORMS, list(NORMS), "norms in which attacks are bounded", many=True),
            Option("--radii-linf", positive_float, (1, 2, 4, 8, 16, 32, 64), "largest changes, grey levels", many=True),
            Option("--radii-l2", positive_float, (0.1, 0.25, 0.5, 1, 2, 4), "in L2, where white is 1", many=True),
            Option(
                "--checks",
                whole_number,
                50,
                "look for masked gradients on the first N images that are right, at the "
                "radius that about half of all withstand; 0 for not at all",
            ),
        )
    },
    "sampling": {
        "": (
            Option("--methods", SAMPLERS, SAMPLERS, "samplers", many=True),
            Option("--classifier", Path, None, "run whose features and classes judge (default: the model itself)"),
            Option("--reference", positive_int, 2000, "training images to compare features with"),
            Option("--guidance", positive_float, 1.0, "how many times to take the difference that the class makes"),
        ),
        "stochastic ascent": (
            Option("--step", positive_float, 0.01, "share of the residual of the first step"),
            Option("--beta", positive_float, 0.2, "1 puts no noise back; less takes longer"),
            Option("--step-limit", positive_int, 2000, "greatest number of steps"),
        ),
        "annealed Langevin dynamics": (
            Option("--langevin-step", positive_float, 0.1, "share of the residual of each step"),
            Option("--levels", positive_int, 10, "noise levels, from the highest of the training to the lowest"),
            Option("--repeats", positive_int, 10, "steps at each level"),
        ),
    },
    "similarities": {
        "": (
            Option("--classifier", Path, None, "run whose features are compared (default: RUN itself)"),
            Option("--search", NAMES, [PIXELS, SSIM, FEATURES], "what to search by; information takes long", many=True),
            Option("--sigma", noise_level, 25 / 255, "noise level of noisy images; they are clipped"),
            Option("--examples", positive_int, 20, "training images of each class that are neighbours"),
            Option("--nodes", positive_int, 4, "noise levels of information"),
            Option("--low", noise_level, None, "lowest noise level of information (default: that of the training)"),
        ),
        "generators": (
            Option("--train-images", positive_int, 5000, "images to train on, at most"),
            Option("--train-steps", positive_int, 500, "steps of the training"),
            Option("--width", positive_int, 128, "width of the widest hidden layer"),
            Option("--steps", whole_number, 30, "steps of each search, from the mean of the encoder"),
        ),
    },
    "learning_curves": {
        "": (
            Option("--sizes", positive_int, [100, 300, 1000], "numbers of training images", many=True),
            Option("--seeds", seed_number, [0, 1], "seeds of images, weights and noise; one run each", many=True),
            Option("--objectives", OBJECTIVES, list(OBJECTIVES), "objectives to train on", many=True),
            Option("--steps", positive_int, 1000, "length of every run"),
        )
    },
}
