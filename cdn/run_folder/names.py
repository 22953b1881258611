"""The names of the files in a run folder."""

# The configuration of a run, and the fingerprint of its data.
CONFIG, DATA = "config.json", "data.json"
# Rows of losses and evaluations, the weights that it delivers, the checkpoint, and the checkpoint before.
METRICS, WEIGHTS, STATE, PREVIOUS = "metrics.jsonl", "model.safetensors", "state.pt", "state.previous.pt"
# Locked while a process trains the run.
LOCK = ".lock"
# Pictures that are drawn at the end of a training, and what `--profile` writes.
DENOISING, CHAINS, CURVES = PICTURES = "denoising.png", "chains.png", "curves.png"
PROFILE = "profile.json"
# What `python -m cdn.evaluate` adds.
EVALUATION, RELIABILITY = "evaluation.json", "reliability.png"
