"""Detection of images that are unlike those of the training."""
