"""The workload of a step, and the bytes that it sends, by purpose.

DeepSpeed 0.19's traffic was counted on two and four ranks, and the tests count it again. The
principle is in Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", SC 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from vse_scale.config import Config
from vse_scale.data.equal import BYTES_OF_KEYS
from vse_scale.model.adapters import trained_numbers
from vse_scale.model.blueprint import blueprint
from vse_scale.model.towers.transformer import TransformerTower
from vse_scale.objective.base import Objective
from vse_scale.objective.registry import objective_of
from vse_scale.training.optim import moments_of

FLOAT, HALF = 4, 2  # bytes
_PERSISTENT = 100_000  # numbers: smaller parameters stay whole under stage 3

Stage = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)


@dataclass(frozen=True)
class Workload:
    """The workload of a step, in numbers (not bytes).

    Attributes:
        parameters: of the model.
        trained: parameters that train at some time.
        moments: numbers that the optimizer keeps of each of those.
        autocast_parameters: parameters whose gradients travel in bfloat16; 0 in float32.
        gathered_parameters: parameters that stage 3 gathers in bfloat16.
        global_batch: pairs.
        captions_per_image: pairs that an image serves.
        embed_dim: D.
        objective: the loss, which is planned for its final phase.
        averaged: whether a rank keeps an average of the weights.
        compared: whether ranks compare their captions.
        gather_gb: of a checkpoint, in units of 10**9 bytes, up to which the first rank gathers it.
        held_channels: of a vector of a caption, where those are held; else 0.
        held_pooled: whether a caption has one vector, in float32, in place of one of a token.
    """

    parameters: int
    trained: int
    moments: int
    autocast_parameters: int
    gathered_parameters: int
    global_batch: int
    captions_per_image: int
    embed_dim: int
    objective: Objective
    averaged: bool = False
    compared: bool = False
    gather_gb: float = math.inf
    held_channels: int = 0
    held_pooled: bool = False

    @classmethod
    def of(cls, config: Config, *, bfloat16: bool) -> Workload:
        """Return the workload of a configuration; the model is made without its weights.

        Raises:
            ModelError: there is no such model.
        """
        model, _ = blueprint(config)
        autocast = [
            parameter
            for module in model.modules()
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
            for parameter in module.parameters(recurse=False)
        ]
        trained = sum(parameter.numel() for parameter in autocast if parameter.requires_grad)
        large = sum(one.numel() for one in autocast if one.numel() > _PERSISTENT)
        text = model.text
        holds = text if config.data.hold_captions and isinstance(text, TransformerTower) else None
        return cls(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            trained=trained_numbers(model),
            moments=len(moments_of(config.optim)),
            autocast_parameters=trained * bfloat16,
            gathered_parameters=large * bfloat16,
            global_batch=config.data.global_batch,
            captions_per_image=config.data.captions_per_image,
            embed_dim=config.model.embed_dim,
            objective=objective_of(config.objective),
            averaged=config.optim.average > 0,
            compared=config.data.equal_captions == "positives",
            gather_gb=config.run.gather_gb,
            held_channels=holds.projection.in_features if holds else 0,
            held_pooled=holds is not None and holds.pool.commutes,
        )


def size_in_words(parameters: int, trained: int) -> str:
    """Return a model's size in words, and the part that trains where it is not all."""
    part = "" if trained == parameters else f", {trained / 1e6:.1f} million of which train"
    return f"{parameters / 1e6:.1f} million parameters{part}"


def loss_gathers(work: Workload, ranks: int) -> tuple[int, ...]:
    """Return the bytes of a rank's part of each all-gather of the loss in a step."""
    pairs = work.global_batch // ranks
    embeddings = work.objective.gathered_bytes(
        work.objective.final_phase,
        images=pairs // work.captions_per_image,
        captions=pairs,
        embed_dim=work.embed_dim,
    )
    return (*embeddings, pairs * BYTES_OF_KEYS) if work.compared else embeddings


def loss_bytes(work: Workload, ranks: int) -> int:
    """Return the bytes that leave a rank for the loss in a step, as `Exchange.bytes_sent` counts.

    A rank's part of a gather goes to every other rank. No gradient follows.
    """
    return sum(loss_gathers(work, ranks)) * (ranks - 1)


def step_bytes(work: Workload, stage: Stage, ranks: int) -> dict[str, float]:
    """Return the bytes that leave a rank in a step, by purpose.

    Collectives of N ranks send as rings do: (N - 1) / N of the whole for a reduce-scatter or an
    all-gather, twice that for an all-reduce. Stages 1 and 2 all-reduce gradients, as DeepSpeed
    0.19 does by default, and gather what they updated. Stage 3 gathers all weights, those that do
    not train too, once a step: a model below DeepSpeed's reuse distance of 10^9 parameters stays
    whole from the forward to the backward pass.
    """
    share = (ranks - 1) / ranks
    gradients = FLOAT * work.trained - HALF * work.autocast_parameters
    weights = FLOAT * work.trained
    if stage == 3:
        weights = FLOAT * work.parameters - HALF * work.gathered_parameters
    return {
        "loss": float(loss_bytes(work, ranks)),
        "gradients": (1 if stage == 3 else 2) * share * gradients,
        "weights": share * weights if stage else 0.0,
    }
