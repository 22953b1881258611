"""The Jacobian of a denoiser: its products, its trace, and its eigenpairs."""
