"""The floor of mean squares: below it, features and images count as blank, in every backend and in the models."""

import torch

# Powers of the smallest normal number: 3/7 of 2^-126 and of 2^-1022 are whole, so that both are exact.
SQUARE_FLOOR, SQUARE_FLOOR_FLOAT64 = 2.0**-54, 2.0**-438


def square_floor(dtype: torch.dtype) -> float:
    """Return up to where a mean square T counts as 0: 2^-54 = 6e-17, a root of 7e-9; 2^-438 for float64.

    The derivatives of the root and of the logarithm of T, and those of the scale-preserving norm, grow as 1/sqrt(T) and
    1/T. A loss of squares of scores has factors of 1/T^2 on its way, which are infinite in float32 below T = 2^-64, and
    once infinite they make NaN. At the floor they are 2^108, which leaves 2^20 for what else is multiplied: the power
    -3/2 of the norm's eps, 2^15 by default, and sums. Half precision is computed in float32.

    What is above stays as it was, bit for bit: an image that differs from the mean in one grey level of 255 at one
    pixel of 16 million has a mean square of 1e-12.

    Args:
        dtype: of the numbers that the mean square is of.
    """
    return SQUARE_FLOOR_FLOAT64 if dtype == torch.float64 else SQUARE_FLOOR
