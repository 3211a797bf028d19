"""Errors that a user can act on.

Every message names the file or the knob at fault and what to do about it. The command line prints
``trim-jax: <message>`` and exits with status 2, without a traceback; whatever is not a `TrimError`
is a bug of ours and keeps its traceback.
"""


class TrimError(Exception):
    """Base of every error that bad input, bad files or a bad setting can cause."""


class ConfigError(TrimError):
    """An unknown or ill-typed configuration field, or a value outside its range."""


class DataError(TrimError):
    """A data set, a split or a row of it that cannot be used."""


class CheckpointError(TrimError):
    """A model folder that is missing, incomplete, or does not fit the rest of the trio."""


class ResultError(TrimError):
    """A result folder that cannot be written, is in use, or belongs to another run."""
