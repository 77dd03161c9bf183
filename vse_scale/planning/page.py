"""The plan of a run, as numbers, as a page and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vse_scale.config import Config
from vse_scale.errors import ConfigError
from vse_scale.planning.constants import Constants
from vse_scale.planning.flops import count_flops
from vse_scale.planning.memory import Batches, memory_bytes
from vse_scale.planning.steps import Step, efficiency, step_time
from vse_scale.planning.traffic import STAGES, Stage, Workload, step_bytes

TOKENS = 32  # of a batch's longest caption, if not measured; about that in COCO

_BYTES = {"GB": 1e9, "MB": 1e6}


@dataclass(frozen=True)
class Estimate:
    """Memory, traffic and step time of one ZeRO stage on one number of ranks.

    Attributes:
        memory: bytes of a rank by part, which add up to the peak.
        sent: bytes that leave a rank in a step, by purpose.
        step: its seconds; None without a machine's constants.
        pairs_per_second: of all ranks; None likewise.
        efficiency: pairs/s of a rank, over those of one rank alone with as many pairs; likewise.
        binds: "memory" where that does not fit, else as `Step.binds`; likewise.
    """

    memory: dict[str, float]
    sent: dict[str, float]
    step: Step | None = None
    pairs_per_second: float | None = None
    efficiency: float | None = None
    binds: str | None = None


@dataclass(frozen=True)
class Plan:
    """Estimates by number of ranks and ZeRO stage.

    Attributes:
        work: of all ranks together.
        flops: operations of a step's forward and backward pass, of all ranks together.
        estimates: by number of ranks and stage.
    """

    work: Workload
    flops: float
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
        if constants is not None and constants.parameters != work.parameters:
            raise ConfigError(
                f"the constants belong to a model of {constants.parameters} parameters, and "
                f"this one has {work.parameters}; measure this one with --measure FILE"
            )
        tokens = constants.tokens if constants else TOKENS
        estimates: dict[int, dict[Stage, Estimate]] = {}
        for count in ranks:
            batches = Batches.of(config, work, count, tokens=tokens, cuda=cuda, bfloat16=bfloat16)
            estimates[count] = {
                stage: _estimate(work, batches, constants, stage, count) for stage in STAGES
            }
        flops = work.global_batch * count_flops(config, tokens=tokens)
        return cls(work, flops, estimates)

    def text(self) -> str:
        """Return a page: for each number of ranks a table with a column for each stage."""
        work = self.work
        lines = [
            f"{work.parameters / 1e6:.1f} million parameters, {work.global_batch} pairs a step, "
            f"forward and backward {self.flops / 1e12:.3g} TFLOP"
        ]
        for count, stages in self.estimates.items():
            found = [stages[stage] for stage in STAGES]
            pairs = work.global_batch // count
            heads = [f"ZeRO-{stage}" for stage in STAGES]
            lines += ["", _row(f"{count} rank{'s'[: count - 1]}, {pairs} pairs each", heads)]
            lines += _table([one.memory for one in found], _BYTES, "{} kept")
            lines += _table([one.sent for one in found], _BYTES, "{} sent a step")
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


def _estimate(
    work: Workload, batches: Batches, constants: Constants | None, stage: Stage, ranks: int
) -> Estimate:
    memory = memory_bytes(work, batches, stage, ranks)
    sent = step_bytes(work, stage, ranks)
    if constants is None:
        return Estimate(memory, sent)
    step = step_time(work, constants, stage, ranks)
    here = 1 if constants.cuda else min(ranks, constants.ranks_per_host or ranks)
    fits = sum(memory.values()) * here <= constants.memory_bytes
    return Estimate(
        memory,
        sent,
        step,
        pairs_per_second=work.global_batch / step.total,
        efficiency=efficiency(work, constants, stage, ranks),
        binds=step.binds if fits else "memory",
    )


def _plain(one: Estimate) -> dict[str, Any]:
    plain: dict[str, Any] = {"kept": one.memory, "sent": one.sent}
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
