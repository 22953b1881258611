"""The models that come with the package: how they are trained, made small, measured and written about."""
