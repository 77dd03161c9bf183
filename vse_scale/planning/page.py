"""The plan of a run, as numbers, as a page and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vse_scale.config import Config
from vse_scale.errors import UserError
from vse_scale.planning.constants import Constants
from vse_scale.planning.flops import count_flops
from vse_scale.planning.held import held_vectors
from vse_scale.planning.memory import (
    Batches,
    checkpoint_bytes,
    checkpoint_size,
    memory_bytes,
)
from vse_scale.planning.reading import RANKS_PER_NODE, Reading, read_by_nodes
from vse_scale.planning.steps import Step, efficiency, step_time
from vse_scale.planning.traffic import STAGES, Stage, Workload, size_in_words, step_bytes

TOKENS = 32  # of a batch's longest caption, if not measured; about that in COCO

_BYTES = {"GB": 1e9, "MB": 1e6}


@dataclass(frozen=True)
class Estimate:
    """Memory, traffic and step time of one ZeRO stage on one number of ranks.

    Attributes:
        memory: bytes of a rank by part, which add up to the peak.
        sent: bytes that leave a rank in a step, by purpose.
        checkpoint: bytes of the first rank's host memory for checkpoints, by part.
        reading: of a node; None where the dataset is not there.
        stall: seconds that the steps wait for a checkpoint; None without the rate of copying.
        write: seconds that a checkpoint is written behind the steps; None without the rate.
        start: seconds until the first step is done; None without a process's.
        step: its seconds; None without a machine's constants.
        pairs_per_second: of all ranks; None likewise.
        efficiency: pairs/s of a rank, over those of one rank alone with as many pairs; likewise.
        binds: "memory" where that does not fit, else as `Step.binds`; likewise.
    """

    memory: dict[str, float]
    sent: dict[str, float]
    checkpoint: dict[str, float]
    reading: Reading | None = None
    stall: float | None = None
    write: float | None = None
    start: float | None = None
    step: Step | None = None
    pairs_per_second: float | None = None
    efficiency: float | None = None
    binds: str | None = None

    @property
    def staging(self) -> float | None:
        """Bytes a second that a node copies from the storage; None without a step's time."""
        if self.step is None or self.reading is None:
            return None
        return self.reading.step_bytes / self.step.total


@dataclass(frozen=True)
class Plan:
    """Estimates by number of ranks and ZeRO stage.

    Attributes:
        work: of all ranks together.
        flops: operations of a step's forward and backward pass, of all ranks together.
        shards: of the dataset, in words, or why they are not planned.
        estimates: by number of ranks and stage.
    """

    work: Workload
    flops: float
    shards: str
    estimates: dict[int, dict[Stage, Estimate]]

    @classmethod
    def of(cls, config: Config, ranks: Sequence[int], constants: Constants | None) -> Plan:
        """Estimate ``config`` on each number of ``ranks``; without ``constants`` there is no time.

        Precision "auto" is bfloat16, as on a GPU, unless the constants are a CPU's.

        Raises:
            ModelError: there is no such model.
            ConfigError: the constants belong to another model, or lack the network.
        """
        cuda = constants is None or constants.cuda
        bfloat16 = config.engine.precision == "bfloat16" or (
            config.engine.precision == "auto" and cuda
        )
        work = Workload.of(config, bfloat16=bfloat16)
        if constants is not None:
            constants.check_model(work.parameters, work.trained)
        tokens = constants.tokens if constants else TOKENS
        here = (constants and constants.ranks_per_host) or min(RANKS_PER_NODE, max(ranks))
        readings, shards = read_by_nodes(config, ranks, here)
        held = 0
        if work.held_channels:
            try:
                held = held_vectors(config, tokens, pooled=work.held_pooled)
            except (UserError, OSError) as error:
                shards += f"; the states of captions are not counted: {error}"
        estimates: dict[int, dict[Stage, Estimate]] = {}
        for count in ranks:
            batches = Batches.of(
                config, work, count, tokens=tokens, cuda=cuda, bfloat16=bfloat16, held=held
            )
            estimates[count] = {
                stage: _estimate(work, batches, constants, stage, count, readings.get(count))
                for stage in STAGES
            }
        flops = work.global_batch * count_flops(config, tokens=tokens)
        return cls(work, flops, shards, estimates)

    def text(self) -> str:
        """Return a page: for each number of ranks a table with a column for each stage."""
        work = self.work
        lines = [
            f"{size_in_words(work.parameters, work.trained)}, {work.global_batch} pairs a step, "
            f"forward and backward {self.flops / 1e12:.3g} TFLOP",
            self.shards,
        ]
        for count, stages in self.estimates.items():
            found = [stages[stage] for stage in STAGES]
            pairs = work.global_batch // count
            heads = [f"ZeRO-{stage}" for stage in STAGES]
            lines += ["", _row(f"{count} rank{'s'[: count - 1]}, {pairs} pairs each", heads)]
            lines += _table([one.memory for one in found], _BYTES, "{} kept")
            lines += _table([one.sent for one in found], _BYTES, "{} sent a step")
            lines += _table([one.checkpoint for one in found], _BYTES, "{} checkpoint")
            lines.append(_row("GB checkpoint on disk", [f"{checkpoint_size(work) / 1e9:.2f}"] * 4))
            if found[0].stall is not None:
                lines.append(_cells("s checkpoint stall", found, lambda one: f"{one.stall:.2f}"))
            if found[0].write is not None:
                lines.append(_cells("s to write it", found, lambda one: f"{one.write:.2f}"))
            if found[0].start is not None:
                lines.append(_cells("s of start-up", found, lambda one: f"{one.start:.1f}"))
            lines += _reading_lines(found)
            steps = [one.step for one in found if one.step is not None]
            if steps:
                lines += _table(
                    [step.seconds for step in steps], {"s": 1.0, "ms": 1e-3}, "{} a step"
                )
                lines += [
                    _cells("pairs/s", found, lambda one: f"{one.pairs_per_second:.0f}"),
                    _cells("efficiency", found, lambda one: f"{one.efficiency:.0%}"),
                    _cells("what binds", found, lambda one: str(one.binds)),
                ]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the figures of `text` in bytes and seconds, by number of ranks and ZeRO stage."""
        return {
            str(count): {str(stage): _plain(one) for stage, one in stages.items()}
            for count, stages in self.estimates.items()
        }


def _reading_lines(found: Sequence[Estimate]) -> list[str]:
    reading = found[0].reading
    if reading is None:
        return []
    lines = [
        _row("shards a node reads", [f"{reading.shards:,}"] * len(found)),
        _row("GB a node reads an epoch", [f"{reading.bytes / 1e9:,.2f}"] * len(found)),
    ]
    if reading.staged and found[0].step is not None:
        lines.append(
            _cells("MB/s staged on a node", found, lambda one: f"{(one.staging or 0.0) / 1e6:.1f}")
        )
    return lines


def _estimate(
    work: Workload, batches: Batches, constants: Constants | None, stage: Stage, ranks: int,
    reading: Reading | None,
) -> Estimate:  # fmt: skip
    memory = memory_bytes(work, batches, stage, ranks)
    sent = step_bytes(work, stage, ranks)
    checkpoint = checkpoint_bytes(work, stage, ranks)
    if constants is None:
        return Estimate(memory, sent, checkpoint, reading)
    step = step_time(work, constants, stage, ranks, reading.step_bytes if reading else 0.0)
    here = 1 if constants.cuda else min(ranks, constants.ranks_per_host or ranks)
    # Without a GPU the copies lie where the ranks train.
    beside = 0.0 if constants.cuda else sum(checkpoint.values())
    fits = sum(memory.values()) * here + beside <= constants.memory_bytes
    return Estimate(
        memory,
        sent,
        checkpoint,
        reading,
        stall=_seconds(checkpoint["copied"], constants.copy_bytes_per_second),
        write=_seconds(checkpoint_size(work), constants.write_bytes_per_second),
        start=_start(constants, reading),
        step=step,
        pairs_per_second=work.global_batch / step.total,
        efficiency=efficiency(work, constants, stage, ranks),
        binds=step.binds if fits else "memory",
    )


def _seconds(size: float, rate: float | None) -> float | None:
    return None if rate is None else size / rate


def _start(constants: Constants, reading: Reading | None) -> float | None:
    if constants.start_seconds is None:
        return None
    first = float(reading.first) if reading and reading.staged else 0.0
    return constants.start_seconds + (_seconds(first, constants.storage_bytes_per_second) or 0.0)


def _plain(one: Estimate) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "kept": one.memory, "sent": one.sent, "checkpoint": one.checkpoint,
    }  # fmt: skip
    if one.reading is not None:
        plain["node"] = {"shards": one.reading.shards, "bytes_an_epoch": one.reading.bytes}
    for name in ("stall", "write", "start", "staging"):
        if getattr(one, name) is not None:
            plain[name] = getattr(one, name)
    if one.step is not None:
        plain |= {
            "seconds": one.step.seconds,
            "pairs_per_second": one.pairs_per_second,
            "efficiency": one.efficiency,
            "binds": one.binds,
        }
    return plain


def _table(stages: Sequence[dict[str, float]], units: dict[str, float], what: str) -> list[str]:
    """Return a row for each part and for their sum, in the largest unit that the sum reaches."""
    sums = [sum(stage.values()) for stage in stages]
    unit, size = next(
        (pair for pair in units.items() if max(sums) >= pair[1]), list(units.items())[-1]
    )
    what = what.format(unit)
    rows = [
        _row(f"{what}: {part}", [f"{stage[part] / size:.2f}" for stage in stages])
        for part in stages[0]
    ]
    return [*rows, _row(what, [f"{total / size:.2f}" for total in sums])]


def _cells(what: str, found: Sequence[Estimate], cell: Callable[[Estimate], str]) -> str:
    return _row(what, [cell(one) for one in found])


def _row(what: str, cells: Sequence[str]) -> str:
    return f"  {what:<28}" + "".join(f"{cell:>11}" for cell in cells)
