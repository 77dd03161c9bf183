"""The job that every stage measures."""

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
        config: model and batch; ``data.path`` is the dataset to measure on.
        repeats: number of timed rounds.
        small: whether this is a rehearsal: just enough work to show that everything runs.
        device: device of the models.
        scratch: folder for temporary files, removed at the end.
    """

    config: Config
    repeats: int
    small: bool
    device: torch.device
    scratch: Path

    @property
    def cores(self) -> int:
        """Number of CPU cores that this process, and so every implementation, may use."""
        return len(os.sched_getaffinity(0))
