"""Run implementations in turns, each in a process of its own.

While one works the others are stopped (SIGSTOP) together with their workers, so that none of them
prefetches during another's turn, and each continues in the state in which it was stopped. Other
load on the machine affects all of them alike, since ratios are taken within a round.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from statistics import median
from typing import Any

import psutil

from vse_scale.console import heartbeat
from vse_scale.errors import UserError

_SAMPLE_SECONDS = 0.1
_END_SECONDS = 20.0


@dataclass(frozen=True)
class Sample:
    """Work of an implementation in one turn.

    Attributes:
        units: amount of work, such as images.
        seconds: duration of the turn.
        phases: seconds by phase, empty if not measured.
    """

    units: float
    seconds: float
    phases: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Implementation:
    """A way to do the work of a case.

    Attributes:
        name: name in the table.
        turns: a function of a module, called with ``arguments`` in the implementation's process. It
            prepares, and then yields a `Sample` after every turn, without end.
        arguments: keyword arguments that can be pickled.
    """

    name: str
    turns: Callable[..., Iterator[Sample]]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """Work of an implementation in all rounds.

    Attributes:
        values: units per second, one per round.
        peak_bytes: on a machine with a GPU, the most that torch had allocated there, -1 if the
            implementation's own process had nothing; else the most that its processes held
            together, with shared pages counted once (PSS).
        shares: share of the time by phase, as medians over the rounds.
    """

    values: list[float]
    peak_bytes: int
    shares: dict[str, float]


def take_turns(
    implementations: Sequence[Implementation], repeats: int, *, small: bool
) -> dict[str, Result]:
    """Run ``repeats`` rounds, in each of which every implementation has one timed turn.

    Memory is sampled in an earlier round, which warms up, because sampling would disturb the times.

    Args:
        implementations: the ones to compare.
        repeats: number of timed rounds.
        small: whether this is a rehearsal, which has no earlier round.

    Raises:
        UserError: an implementation raised it.
        RuntimeError: an implementation failed otherwise; the message has its traceback.
    """
    samples: dict[str, list[Sample]] = {one.name: [] for one in implementations}
    peaks = dict.fromkeys(samples, 0)
    with ExitStack() as stack:
        workers = [stack.enter_context(_started(one)) for one in implementations]
        for number in range(repeats + (not small)):
            for worker in workers:
                name = worker.implementation.name
                with heartbeat(f"round {number}, {name}"):
                    if number == 0:
                        with _sampled_memory(worker.process) as peak:
                            sample, on_gpu = worker.turn()
                        peaks[name] = peak[0]
                    else:
                        sample, on_gpu = worker.turn()
                    if on_gpu is not None:
                        peaks[name] = on_gpu or -1
                if number or small:
                    samples[name].append(sample)
    return {name: _result(done, peaks[name]) for name, done in samples.items()}


def fastest(implementations: Mapping[int, Implementation]) -> int:
    """Return the key, such as a number of threads, of the fastest implementation in two rounds."""
    results = take_turns([*implementations.values()], repeats=2, small=False)
    return max(
        implementations, key=lambda number: median(results[implementations[number].name].values)
    )


def powers_of_two(most: int) -> list[int]:
    """Return 1, 2, 4 and so on up to ``most``."""
    return [1 << power for power in range(most.bit_length())]


def _result(samples: list[Sample], peak_bytes: int) -> Result:
    phases = {phase: None for sample in samples for phase in sample.phases}
    shares = {
        phase: median(sample.phases.get(phase, 0.0) / sample.seconds for sample in samples)
        for phase in phases
    }
    return Result([sample.units / sample.seconds for sample in samples], peak_bytes, shares)


@dataclass(frozen=True)
class _Worker:
    implementation: Implementation
    process: BaseProcess
    pipe: Connection

    def turn(self) -> tuple[Sample, int | None]:
        """Wake the implementation for one turn; also return its peak bytes on a GPU.

        They are None without a GPU.
        """
        assert self.process.pid is not None
        os.killpg(self.process.pid, signal.SIGCONT)
        self.pipe.send(True)
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join(_END_SECONDS)
            raise RuntimeError(
                f"{self.implementation.name}: its process ended with code {self.process.exitcode}"
            ) from None
        os.killpg(self.process.pid, signal.SIGSTOP)
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, str):
            raise RuntimeError(f"{self.implementation.name}:\n{answer}")
        sample, on_gpu = answer
        return sample, on_gpu


@contextmanager
def _started(implementation: Implementation) -> Iterator[_Worker]:
    """Start the implementation's process; end it with all of its workers."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(
        target=_serve, args=(theirs, implementation.turns, dict(implementation.arguments))
    )
    process.start()
    theirs.close()
    assert process.pid is not None
    patience = 0.0  # an error may have come in the middle of a long turn
    try:
        # It answers once it has a process group of its own, so that stopping it stops its workers.
        assert ours.poll(None)
        with suppress(EOFError):
            ours.recv()
        yield _Worker(implementation, process, ours)
        patience = _END_SECONDS
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
        ours.close()  # tells it to end
        process.join(patience)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _serve(
    pipe: Connection, turns: Callable[..., Iterator[Sample]], arguments: dict[str, Any]
) -> None:
    """Do a turn for every message of the pipe; runs in the implementation's process."""
    os.setpgid(0, 0)
    pipe.send(True)
    try:
        running = turns(**arguments)
        while pipe.recv():
            pipe.send((next(running), _leave_gpu()))
    except (EOFError, BrokenPipeError):
        running.close()  # type: ignore[attr-defined]  # a generator
    except UserError as error:
        pipe.send(error)
    except Exception:
        pipe.send(traceback.format_exc())


def _leave_gpu() -> int | None:
    """Release free memory of the GPU for the next implementation; return the peak bytes."""
    torch = sys.modules.get("torch")  # a process that did not import it holds nothing there
    if torch is None or not torch.cuda.is_available():
        return None
    torch.cuda.empty_cache()
    return int(torch.cuda.max_memory_allocated())


@contextmanager
def _sampled_memory(process: BaseProcess) -> Iterator[list[int]]:
    """Yield a list of one number: the peak bytes of ``process`` and its children together."""
    peak, done = [0], threading.Event()
    root = psutil.Process(process.pid)

    def look() -> None:
        while True:
            peak[0] = max(peak[0], _held(root))
            if done.wait(_SAMPLE_SECONDS):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _held(root: psutil.Process) -> int:
    """Return the bytes of a process and its children, with shared pages counted once."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
    return total
