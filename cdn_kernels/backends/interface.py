"""What every backend agrees on: the numbers of csrc/api.h that say which pass, which pooling and which type."""
import torch

FORWARD, BACKWARD, TANGENT = range(3)  # the sweeps of a pass
DOT, SCALE, MEAN, SPREAD = range(4)  # the kinds of pooling
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
