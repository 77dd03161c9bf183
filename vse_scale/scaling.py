"""``vse-scale plan``: what a run takes on N ranks, on paper.

Memory per rank by part for each ZeRO stage, bytes per step by collective, and how much of the time
is left for computing. What DeepSpeed 0.19 moves and keeps was counted on two ranks, and the tests
count it again. The principle is in Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training
Trillion Parameter Models", SC 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from vse_scale.config import Config
from vse_scale.model.blueprint import blueprint

FLOAT = 4  # bytes
_INTEGER = 8
_LOSS_SUMS = 5  # float64 numbers that travel with what was mined
_MOMENTS = 2  # of AdamW
_BUCKET = 500_000_000  # numbers: the engine's largest reduce_bucket_size
_PERSISTENT = 100_000  # numbers: smaller parameters stay whole under stage 3

Stage = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)


@dataclass(frozen=True)
class Workload:
    """What a step works on, in numbers (not bytes).

    Attributes:
        parameters: of the model; all of them are trained at some time.
        autocast_parameters: those whose gradients travel in bfloat16; 0 in float32.
        gathered_parameters: those of them that stage 3 gathers in bfloat16.
        global_batch: pairs.
        embed_dim: D.
        hardest: whether the loss takes the hardest negatives, which are told to all ranks.
    """

    parameters: int
    autocast_parameters: int
    gathered_parameters: int
    global_batch: int
    embed_dim: int
    hardest: bool

    @classmethod
    def of(cls, config: Config, *, bfloat16: bool) -> Workload:
        """Read it off a configuration; the model is laid out without its weights.

        Raises:
            ModelError: there is no such model.
        """
        model, _ = blueprint(config)
        autocast = [
            parameter.numel()
            for module in model.modules()
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
            for parameter in module.parameters(recurse=False)
        ]
        return cls(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            autocast_parameters=sum(autocast) * bfloat16,
            gathered_parameters=sum(n for n in autocast if n > _PERSISTENT) * bfloat16,
            global_batch=config.data.global_batch,
            embed_dim=config.model.embed_dim,
            hardest=config.objective.mode == "hardest",
        )


def loss_bytes(work: Workload, ranks: int) -> int:
    """Return the bytes that leave a rank for the loss in a step, as `Exchange.bytes_sent` counts.

    They are its embeddings of both sides and its image ids, five sums, and with the hardest
    negatives two integers per pair; each goes to every other rank. No gradient follows.
    """
    pairs = work.global_batch // ranks
    sent = pairs * (2 * work.embed_dim * FLOAT + _INTEGER) + _LOSS_SUMS * _INTEGER
    if work.hardest:
        sent += 2 * pairs * _INTEGER
    return sent * (ranks - 1)


def step_bytes(work: Workload, stage: Stage, ranks: int) -> dict[str, float]:
    """Return the bytes that leave a rank in a step, by what they are for.

    Collectives of N ranks send as rings do: (N - 1) / N of the whole for a reduce-scatter or an
    all-gather, twice that for an all-reduce. Stages 1 and 2 all-reduce gradients, as DeepSpeed
    0.19 does by default. Stage 3 gathers once a step: a model below DeepSpeed's reuse distance of
    10^9 parameters stays whole from the forward to the backward pass.
    """
    share = (ranks - 1) / ranks
    gradients = FLOAT * work.parameters - FLOAT // 2 * work.autocast_parameters
    weights = FLOAT * work.parameters
    if stage == 3:
        weights -= FLOAT // 2 * work.gathered_parameters
    return {
        "loss": float(loss_bytes(work, ranks)),
        "gradients": (1 if stage == 3 else 2) * share * gradients,
        "weights": share * weights if stage else 0.0,
    }


def state_bytes(work: Workload, stage: Stage, ranks: int) -> dict[str, float]:
    """Return a rank's memory by part when it is fullest, activations left out.

    - weights: whole on every rank; under stage 3 its share, and the whole while they are used.
    - master: the float32 copy of its share, which stages 1 to 3 update.
    - moments: AdamW's two, of what the rank updates.
    - gradients: whole under stage 0, else what the rank keeps of them: its share.
    - bucket: where stages 1 to 3 collect gradients before they reduce them.
    - loss: the embeddings of the global batch, and the gradients of the rank's own.
    """
    whole = float(FLOAT * work.parameters)
    kept = whole / ranks if stage else whole
    embeddings = 2.0 * FLOAT * work.embed_dim * work.global_batch
    return {
        "weights": whole + kept if stage == 3 else whole,
        "master": kept if stage else 0.0,
        "moments": _MOMENTS * kept,
        "gradients": kept,
        "bucket": min(whole, float(FLOAT * _BUCKET)) if stage else 0.0,
        "loss": embeddings * (1 + 1 / ranks),
    }


def efficiency(
    work: Workload, stage: Stage, ranks: int, *, pair_seconds: float, bytes_per_second: float
) -> float:
    """Return the share of a step that computes, if nothing overlaps.

    Args:
        work: of the whole step.
        stage: ZeRO's.
        ranks: that share it.
        pair_seconds: a rank's forward and backward pass, per pair, as measured.
        bytes_per_second: that leave a rank, as measured.
    """
    computing = work.global_batch / ranks * pair_seconds
    moving = sum(step_bytes(work, stage, ranks).values()) / bytes_per_second
    return computing / (computing + moving)


def page(work: Workload, ranks: list[int], constants: dict[str, float] | None = None) -> str:
    """Lay the plan out as text: a table of memory and one of traffic for each number of ranks.

    Args:
        work: of a step.
        ranks: numbers of ranks to plan for.
        constants: ``pair_seconds`` and ``bytes_per_second`` of `efficiency`; None leaves it out.
    """
    lines = [f"{work.parameters / 1e6:.1f} million parameters, {work.global_batch} pairs a step"]
    for count in ranks:
        pairs = work.global_batch // count
        heads = [f"ZeRO-{stage}" for stage in STAGES]
        lines += ["", _row(f"{count} ranks, {pairs} pairs each", heads)]
        memory = [state_bytes(work, stage, count) for stage in STAGES]
        lines += _table(memory, 1e9, "GB kept")
        lines += _table([step_bytes(work, stage, count) for stage in STAGES], 1e6, "MB sent a step")
        if constants is not None:
            shares = [efficiency(work, stage, count, **constants) for stage in STAGES]
            lines.append(_row("share of the time computing", [f"{share:.0%}" for share in shares]))
    lines += ["", "Activations come on top; nothing is taken to overlap."]
    return "\n".join(lines)


def as_json(
    work: Workload, ranks: list[int], constants: dict[str, float] | None = None
) -> dict[str, object]:
    """Return what `page` shows, in bytes, by number of ranks and ZeRO stage."""

    def one(stage: Stage, count: int) -> dict[str, object]:
        told: dict[str, object] = {
            "kept": state_bytes(work, stage, count),
            "sent": step_bytes(work, stage, count),
        }
        if constants is not None:
            told["efficiency"] = efficiency(work, stage, count, **constants)
        return told

    return {str(n): {str(stage): one(stage, n) for stage in STAGES} for n in ranks}


def _table(stages: list[dict[str, float]], unit: float, what: str) -> list[str]:
    rows = [
        _row(f"{what}: {part}", [f"{stage[part] / unit:.2f}" for stage in stages])
        for part in stages[0]
    ]
    return [*rows, _row(what, [f"{sum(stage.values()) / unit:.2f}" for stage in stages])]


def _row(what: str, cells: list[str]) -> str:
    return f"  {what:<28}" + "".join(f"{cell:>10}" for cell in cells)
