"""Requests to stop: all ranks agree on the step after which they do."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch

from vse_scale.training.alive import tell_alive
from vse_scale.world.processes import World


class Stopped(Exception):
    """Raised in the midst of long work on all ranks: they were asked to stop."""


class StopRequest:
    """Listens for the signals of `stop_signals` within its ``with`` block.

    Python gives signals to the main thread alone: in another this listens for nothing.
    """

    def __init__(self, world: World) -> None:
        self.heard = False
        self._world = world
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = True
        # A second Ctrl-C ends the process without waiting for the step.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def requested(self) -> bool:
        """Return whether any rank was asked to stop. Every rank calls this after every step."""
        agreed = torch.tensor(int(self.heard), dtype=torch.int32, device=self._world.device)
        self._world.across(agreed, "max")
        return bool(agreed.item())

    def check(self) -> None:
        """Raise `Stopped` on every rank where any was asked to stop; every rank calls.

        It is called between the parts of long work, and tells that this rank gets on with it.
        """
        tell_alive()
        if self.requested():
            raise Stopped


def stop_signals() -> list[int]:
    """Return the signals that ask to stop: SLURM sends SIGUSR1 when the time limit is near.

    SIGHUP, a terminal that closes, is left out where ``nohup`` has it ignored.
    """
    asked = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        asked.append(signal.SIGHUP)
    return [int(number) for number in asked]
