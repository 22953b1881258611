"""What every backend agrees on: the numbers of csrc/api.h that say which pass, pooling, map or type is meant."""

import torch

FORWARD, BACKWARD, TANGENT = range(3)  # the sweeps of a pass
DOT, SCALE, MEAN, SPREAD = range(4)  # the kinds of pooling
CONV_FORWARD, CONV_INPUT, CONV_WEIGHT = range(3)  # the three maps of a convolution
MAPS = ("forward", "input", "weight")  # their names
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
