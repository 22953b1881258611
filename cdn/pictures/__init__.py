"""Figures and tables: their style, grids of images, curves, bars, and text."""
