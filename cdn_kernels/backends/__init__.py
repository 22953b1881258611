"""Where operations run: one file per backend, and dispatch.py to choose among them."""
