"""The denoiser as an implicit prior: samples from it, and inverse problems solved with it."""
