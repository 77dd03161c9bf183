"""Contenders that take turns, each in a process of its own.

While one works the others are stopped (SIGSTOP), with their workers and what these have ready. So
nobody prefetches in another's time, and everybody goes on in the state in which they were stopped.
A busy moment of the machine hits all alike: what is compared are ratios within a round.
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
    """What a contender did in one turn.

    Attributes:
        units: of work, such as images.
        seconds: that they took.
        phases: seconds of it by what they were spent on, where that is known.
    """

    units: float
    seconds: float
    phases: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """Someone who does the work.

    Attributes:
        name: as the table shows it.
        turns: a function of a module, given ``arguments`` in the contender's process. It prepares,
            and then yields a `Sample` after every turn, without end.
        arguments: what can be pickled.
    """

    name: str
    turns: Callable[..., Iterator[Sample]]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What a contender did in all rounds.

    Attributes:
        values: one per round; units per second.
        peak_bytes: on a machine with a GPU the most that torch had allocated there, -1 where the
            contender's own process had nothing; else the most that the contender's processes held
            together, pages that they share counted once (PSS).
        shares: of the time by phase, as medians over the rounds.
    """

    values: list[float]
    peak_bytes: int
    shares: dict[str, float]


def take_turns(contenders: Sequence[Contender], repeats: int, *, small: bool) -> dict[str, Result]:
    """Let all contenders do ``repeats`` timed turns, round after round.

    A round before these warms up and is where memory is sampled, so that looking does not disturb
    the times; a rehearsal (``small``) leaves it out.

    Raises:
        UserError: a contender raised it.
        RuntimeError: a contender failed otherwise, with its traceback.
    """
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    peaks = dict.fromkeys(samples, 0)
    with ExitStack() as stack:
        players = [stack.enter_context(_player(contender)) for contender in contenders]
        for number in range(repeats + (not small)):
            for player in players:
                name = player.contender.name
                with heartbeat(f"round {number}, {name}"):
                    if number == 0:
                        with _sampled_memory(player.process) as peak:
                            sample, on_gpu = player.turn()
                        peaks[name] = peak[0]
                    else:
                        sample, on_gpu = player.turn()
                    if on_gpu is not None:
                        peaks[name] = on_gpu or -1
                if number or small:
                    samples[name].append(sample)
    return {name: _result(done, peaks[name]) for name, done in samples.items()}


def fastest(contenders: Mapping[int, Contender]) -> int:
    """Return the number, such as one of threads, whose contender is the fastest in two rounds."""
    results = take_turns([*contenders.values()], repeats=2, small=False)
    return max(contenders, key=lambda number: median(results[contenders[number].name].values))


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
class _Player:
    contender: Contender
    process: BaseProcess
    pipe: Connection

    def turn(self) -> tuple[Sample, int | None]:
        """Wake the contender for one turn; also return the bytes that it has held on a GPU.

        None: there is no GPU.
        """
        assert self.process.pid is not None
        os.killpg(self.process.pid, signal.SIGCONT)
        self.pipe.send(True)
        try:
            told = self.pipe.recv()
        except EOFError:
            self.process.join(_END_SECONDS)
            raise RuntimeError(
                f"{self.contender.name}: its process ended with code {self.process.exitcode}"
            ) from None
        os.killpg(self.process.pid, signal.SIGSTOP)
        if isinstance(told, UserError):
            raise told
        if isinstance(told, str):
            raise RuntimeError(f"{self.contender.name}:\n{told}")
        sample, on_gpu = told
        return sample, on_gpu


@contextmanager
def _player(contender: Contender) -> Iterator[_Player]:
    """Start the contender's process; end it with all of its workers."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(
        target=_serve, args=(theirs, contender.turns, dict(contender.arguments))
    )
    process.start()
    theirs.close()
    assert process.pid is not None
    patience = 0.0  # with whom is in the middle of a turn
    try:
        # Its own group by then, so that stopping it stops its workers.
        assert ours.poll(None)
        with suppress(EOFError):
            ours.recv()
        yield _Player(contender, process, ours)
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
    """Do a turn whenever the pipe asks for one; runs in the contender's process."""
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
    """Give free memory of the GPU back, for the next contender; return the bytes held at most."""
    torch = sys.modules.get("torch")  # who did not import it has nothing there
    if torch is None or not torch.cuda.is_available():
        return None
    torch.cuda.empty_cache()
    return int(torch.cuda.max_memory_allocated())


@contextmanager
def _sampled_memory(process: BaseProcess) -> Iterator[list[int]]:
    """Yield a list of one number: the most bytes that ``process`` and its children held."""
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
    """Bytes of a process and its children, those that they share counted once."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
    return total
