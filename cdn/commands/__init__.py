"""The commands that train, evaluate and use a model: a file each."""
