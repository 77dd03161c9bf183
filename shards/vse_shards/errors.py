"""Errors that a user can mend: one line each, exit code 2."""


class UserError(Exception):
    """Something the user can mend.

    The message names the thing, its value, the limit and what to do. Commands print it as one
    line without a traceback and leave with ``exit_code``.
    """

    exit_code = 2


class SourceError(UserError):
    """A source to build from that is missing, empty or malformed."""


class DatasetError(UserError):
    """A dataset folder that is missing, damaged or disagrees with its manifest."""


class OutputError(UserError):
    """An output folder that cannot be written, or that holds something else."""
