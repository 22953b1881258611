"""Every stream of noise: which positions of a seed belong to what, so that no two uses ever see the same noise.

A :class:`cdn.Noise` key is a seed and a position below 2^63. One seed serves a whole run and all that is measured of
it; what is drawn for what is told by the position. A key stands for itself and for the positions after it that its user
counts up to (steps of a walk, chunks of images, noise levels), all within the stream.

The positions of training, joint energy models, evaluation, probes and certification are those of version 0.1.0.
"""

from dataclasses import dataclass

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

    def __contains__(self, noise: object) -> bool:
        """Say whether a key, or a position, is one of the stream."""
        position = noise.offset if isinstance(noise, Noise) else noise
        return isinstance(position, int) and self.first <= position < self.first + self.size


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

STREAMS = {name: value for name, value in globals().items() if isinstance(value, Stream)}
