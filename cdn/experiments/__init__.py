"""Experiments on trained runs, a command each."""
