"""The workload of a step, and the bytes that it sends, by purpose.

DeepSpeed 0.19's traffic was counted on two and four ranks, and the tests count it again. The
principle is in Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", SC 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from vse_scale.config import Config
from vse_scale.model.blueprint import blueprint
from vse_scale.objective.base import Objective
from vse_scale.objective.registry import objective_of

FLOAT = 4  # bytes
_PERSISTENT = 100_000  # numbers: smaller parameters stay whole under stage 3

Stage = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)


@dataclass(frozen=True)
class Workload:
    """The workload of a step, in numbers (not bytes).

    Attributes:
        parameters: of the model; all of them train at some time.
        autocast_parameters: parameters whose gradients travel in bfloat16; 0 in float32.
        gathered_parameters: parameters that stage 3 gathers in bfloat16.
        global_batch: pairs.
        captions_per_image: pairs that an image serves.
        embed_dim: D.
        objective: the loss, which is planned for its final phase.
        averaged: whether a rank keeps an average of the weights.
    """

    parameters: int
    autocast_parameters: int
    gathered_parameters: int
    global_batch: int
    captions_per_image: int
    embed_dim: int
    objective: Objective
    averaged: bool = False

    @classmethod
    def of(cls, config: Config, *, bfloat16: bool) -> Workload:
        """Return the workload of a configuration; the model is made without its weights.

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
            captions_per_image=config.data.captions_per_image,
            embed_dim=config.model.embed_dim,
            objective=objective_of(config.objective),
            averaged=config.optim.average > 0,
        )


def loss_gathers(work: Workload, ranks: int) -> tuple[int, ...]:
    """Return the bytes of a rank's part of each all-gather of the loss in a step."""
    pairs = work.global_batch // ranks
    return work.objective.gathered_bytes(
        work.objective.final_phase,
        images=pairs // work.captions_per_image,
        captions=pairs,
        embed_dim=work.embed_dim,
    )


def loss_bytes(work: Workload, ranks: int) -> int:
    """Return the bytes that leave a rank for the loss in a step, as `Exchange.bytes_sent` counts.

    A rank's part of a gather goes to every other rank. No gradient follows.
    """
    return sum(loss_gathers(work, ranks)) * (ranks - 1)


def step_bytes(work: Workload, stage: Stage, ranks: int) -> dict[str, float]:
    """Return the bytes that leave a rank in a step, by purpose.

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
