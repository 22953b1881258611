"""Every stream of random numbers, so that no two uses of one seed ever see the same ones.

One seed serves a whole run and all that is measured of it. Two kinds of streams divide what it gives:

* :class:`Stream`: counter-based noise, the same on every device. A :class:`cdn.Noise` key is a seed and a position
  below 2^63, and a stream is a range of positions. A key stands for itself and for the positions after it that its user
  counts up to (steps of a walk, chunks of images, noise levels), all within the stream.
* :class:`Draws`: numbers that are drawn on the CPU by generators of torch, such as orders of images, random places and
  the first weights of generators. These streams are told apart by their names.

Only the first weights of a network come from neither, but from torch's global generator, seeded with the seed. The
positions of training, joint energy models, evaluation, probes and certification are those of version 0.1.0, and so are
the draws of training.
"""

from dataclasses import dataclass

import numpy as np
import torch

from cdn_kernels import Noise

# The number of positions of a seed.
POSITIONS = 1 << 63


@dataclass(frozen=True)
class Stream:
    """A range of positions.

    Args:
        first: its first position.
        size: how many there are.
    """

    first: int
    size: int

    def key(self, seed: int, position: int = 0) -> Noise:
        """Return the key of a position within the stream.

        Raises:
            ValueError: a position outside of it.
        """
        if not 0 <= position < self.size:
            raise ValueError(f"position: expected one of the {self.size} of the stream, got {position}")
        return Noise(seed, self.first + position)


# The steps of training, each its number.
TRAINING = Stream(0, 1 << 60)
# The curve that estimates of the noise level are read from.
CALIBRATION = Stream(1 << 60, 1 << 32)
# Clean images that tell a vote what is typical.
REFERENCE = Stream((1 << 60) + (1 << 32), 1 << 32)
# Distances between images.
SIMILARITY = Stream((1 << 60) + (2 << 32), 1 << 32)
# What reconstructions are compared by.
RECONSTRUCTION = Stream((1 << 60) + (3 << 32), 1 << 32)
# Noise that a defence adds while it is attacked, and while it decides.
ATTACKS = Stream(5 << 58, 1 << 58)
DECISIONS = Stream(6 << 58, 1 << 58)
# Where attacks start and, without gradients, go.
ATTACK_STARTS = Stream(5 << 60, 1 << 60)
# Images that are drawn from a model, and images restored from measurements.
SAMPLING = Stream(7 << 58, 1 << 57)
RESTORATION = Stream(15 << 57, 1 << 57)
# The chains of joint energy models.
JEM = Stream(1 << 61, 1 << 61)
# Noisy test images.
EVALUATION = Stream(1 << 62, 1 << 32)
# Random vectors that a Jacobian is multiplied with.
PROBES = Stream((1 << 62) + (1 << 32), 1 << 32)
# The votes of certificates.
CERTIFICATION = Stream(3 << 61, 1 << 61)


@dataclass(frozen=True)
class Draws:
    """A stream of generators on the CPU.

    Args:
        name: what tells its draws from those of all others.
    """

    name: str

    def generator(self, seed: int, position: int = 0) -> torch.Generator:
        """Return the generator of a seed and a position; equal ones draw the same, neighbours are unrelated.

        Raises:
            ValueError: a seed or a position that :class:`cdn.Noise` does not take either.

        Limitations: torch's generators have 2^32 states to begin from. Two positions share one by chance alone.
        """
        key = Noise(seed, position)
        words = np.random.SeedSequence([int.from_bytes(self.name.encode(), "little"), key.seed, position])
        return torch.Generator().manual_seed(int(words.generate_state(1, np.uint64)[0]))


# The order of the images of an epoch, and the images of a smaller training set.
ORDER, SUBSET = Draws("order"), Draws("subset")
# Crops and mirrors of the images of a step, and the parts that are decoded of them.
AUGMENTATION, PARTS = Draws("augment"), Draws("parts")
# Which images are mirrored in the first epoch, where they alternate.
FLIPS = Draws("flips")
# Where the chains of joint energy models start, and which of them a step moves.
CHAINS, REPLAY = Draws("chains"), Draws("replay")
# First weights of the generators of classes, the images and latents of their training, and latents to search from.
GENERATORS, FITTING, LATENTS = Draws("generators"), Draws("fitting"), Draws("latents")
# Pixels that are kept and vectors that images are projected onto.
MEASUREMENTS = Draws("measurements")
# Noise and shuffled images that stand for outliers, and the uniform noise that samples are compared with.
OUTLIERS, UNIFORM_IMAGES = Draws("outliers"), Draws("uniform images")
# The vectors that the Lanczos iteration begins with.
LANCZOS = Draws("lanczos")
