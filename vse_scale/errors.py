"""Every error that a user can mend, one class per kind; commands leave with exit code 2."""

from vse_shards.errors import DatasetError, OutputError, SourceError, StorageError, UserError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "LaunchError",
    "ModelError",
    "OutputError",
    "SourceError",
    "StorageError",
    "TrainingError",
    "UserError",
]


class ConfigError(UserError):
    """A configuration key or value that is unknown, malformed or contradicts another."""


class LaunchError(UserError):
    """A launcher's variables that are missing or contradict each other, or a host that is none."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, or that belongs to another dataset or configuration."""


class ModelError(UserError):
    """A model folder or weight file that is missing, damaged or of another shape."""


class TrainingError(UserError):
    """A run that cannot go on, such as one whose loss stays non-finite."""
