"""What a stage is asked to measure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from vse_scale.config import Config


@dataclass(frozen=True)
class Job:
    """One run of the command, as every stage sees it.

    Attributes:
        config: of the model and the batch; ``data.path`` is the dataset to measure on.
        repeats: timed rounds.
        small: whether this is a rehearsal: as little work as shows that everything runs.
        device: where models run.
        scratch: a folder for what a stage writes; it is removed in the end.
    """

    config: Config
    repeats: int
    small: bool
    device: torch.device
    scratch: Path

    @property
    def cores(self) -> int:
        """How many CPU cores this process may use, for all contenders alike."""
        return len(os.sched_getaffinity(0))
