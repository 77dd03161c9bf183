"""Seconds of a step by phase, on a CPU or a GPU."""

from __future__ import annotations

import time

import torch

from vse_scale.run.records import StepRecord


class PhaseTimer:
    """Times the phases of one step after another.

    On a GPU the phases are bounded by events on its stream, since the host runs ahead of it; they
    are read once the step is over.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._waited = 0.0
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self, waited: float) -> None:
        """Begin a step whose batch was waited for ``waited`` seconds."""
        self._waited = waited
        self._marks = [("", self._now())]

    def mark(self, phase: str) -> None:
        """End ``phase``, which began where the one before it ended."""
        self._marks.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        """Return seconds per phase, ``data`` and the whole ``step`` included; waits for the GPU."""
        if self._cuda:
            torch.cuda.synchronize()
        phases = {"data": self._waited}
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(before, float) and isinstance(after, float):
                phases[phase] = after - before
            else:
                assert isinstance(before, torch.cuda.Event)
                assert isinstance(after, torch.cuda.Event)
                phases[phase] = before.elapsed_time(after) / 1000
        phases["step"] = sum(phases.values())
        return phases

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def set_apart(seconds: dict[str, float], before: float, within: float) -> None:
    """Name ``communication``, and take it out of the phases that it was measured in.

    Args:
        seconds: by phase; with several micro-batches all is in ``backward``.
        before: of them, communication ahead of the model.
        within: of them, communication in the objective.
    """
    seconds["forward" if "forward" in seconds else "backward"] -= before
    seconds["objective" if "objective" in seconds else "backward"] -= within
    seconds["communication"] = before + within


def details_of(record: StepRecord) -> str:
    """Return the figures of a step for a line of progress."""
    waited = record.seconds["data"] / record.seconds["step"]
    return (
        f"epoch {record.epoch + 1}  loss {record.loss:.3f} ({record.objective})  "
        f"{record.pairs_per_second:.0f} pairs/s  data wait {100 * waited:.0f}%"
    )
