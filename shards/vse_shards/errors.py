"""Errors that a user can fix: one line each, exit code 2."""


class UserError(Exception):
    """Base of all errors that a user can fix.

    The message gives the faulty object, its value, the limit and the remedy. Commands print it as
    one line without a traceback and exit with ``exit_code``.
    """

    exit_code = 2


class CommandError(UserError):
    """A command line that names no command, or whose options or arguments do not fit it."""


class PartError(UserError):
    """A part, such as a source, that no name leads to or that cannot be imported."""


class SourceError(UserError):
    """A source to build from that is missing, empty or malformed."""


class DatasetError(UserError):
    """A dataset folder that is missing, damaged or disagrees with its manifest."""


class OutputError(UserError):
    """An output folder that cannot be written, or that contains other files."""


class StorageError(UserError):
    """A storage that fails for a while: nothing is lost, and the same command may succeed later."""

    exit_code = 75  # EX_TEMPFAIL: schedulers and the supervisor of a run start the command again


class AccessError(StorageError):
    """A storage that denies access, which is not taken for a missing file."""

    exit_code = UserError.exit_code
