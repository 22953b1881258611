"""What command lines share: types of arguments, parsers, and how a process ends."""
