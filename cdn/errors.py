"""Errors whose message is for the person at the terminal."""


class CDNError(Exception):
    """A problem the user can act on; commands print it as one line and exit with status 1."""


class DataError(CDNError):
    """Images or labels that cannot be found, read, decoded or used."""


class CheckpointError(CDNError):
    """A run folder or checkpoint that is missing, torn, or not one of ours."""


class LostError(CDNError):
    """Another process of the same run has ended, or cannot be reached."""


class NotFiniteError(CDNError, ValueError):
    """Numbers that a decision or a file would be made of are nan or infinite."""


class DivergedError(CDNError):
    """Training met non-finite values too often to go on."""
