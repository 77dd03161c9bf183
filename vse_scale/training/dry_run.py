"""The description of a run that is not started: its configuration and the disk it needs."""

from __future__ import annotations

from vse_scale.config import Config
from vse_scale.console import size
from vse_scale.model.blueprint import blueprint
from vse_scale.training.checkpoint import DiskUse


def describe_run(config: Config) -> str:
    """Return ``config`` as YAML, with an estimate of its checkpoints' size as a comment below.

    Nothing is read but the folders of encoders and tokenizers, where they are there.

    Raises:
        ModelError: such a folder, or an architecture, is wrong.
    """
    model, assumed = blueprint(config)
    disk = DiskUse.of(model, config)
    lines = [
        f"checkpoints: {size(disk.checkpoint)} each; with {config.run.keep_checkpoints} kept and "
        f"one being written, and the best model ({size(disk.model)}) likewise, "
        f"{size(disk.total)}",
        *assumed,
    ]
    return config.to_yaml(recorded=True) + "".join(f"# {line}\n" for line in lines)
