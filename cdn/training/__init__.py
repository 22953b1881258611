"""Training: settings, steps, checkpoints, logs."""
