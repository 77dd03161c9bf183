"""Requests to stop: all ranks agree on the step after which they do."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch

from vse_scale.world.processes import World


class StopRequest:
    """Listens for SIGTERM, SIGINT, and SIGUSR1, SLURM's warning that the time limit is near.

    It does so within its ``with`` block, in the main thread.
    """

    def __init__(self, world: World) -> None:
        self._heard = torch.zeros((), dtype=torch.int32, device=world.device)
        self._world = world
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard.fill_(1)
        # A second Ctrl-C ends the process without waiting for the step.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def requested(self) -> bool:
        """Return whether any rank was asked to stop. Every rank calls this after every step."""
        agreed = self._heard.clone()
        self._world.across(agreed, "max")
        return bool(agreed.item())
