"""Which image files are read, wherever images come from files."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
# Pillow's names of what the suffixes promise, so that no file can pick a more adventurous decoder (EPS runs
# Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
