"""The names of the files in a run folder."""

# What a run was started with, and which data it is trained on.
CONFIG, DATA = "config.json", "data.json"
# Its rows of losses and evaluations, the weights that it delivers, and what it goes on from.
METRICS, WEIGHTS, STATE, PREVIOUS = "metrics.jsonl", "model.safetensors", "state.pt", "state.previous.pt"
# Held while a process trains it.
LOCK = ".lock"
# What is left at the end of the training, and by `--profile`.
DENOISING, CHAINS, CURVES = PICTURES = "denoising.png", "chains.png", "curves.png"
PROFILE = "profile.json"
# What `python -m cdn.evaluate` adds.
EVALUATION, RELIABILITY = "evaluation.json", "reliability.png"
