"""A rank's memory by part, under each ZeRO stage.

DeepSpeed 0.19's memory was counted on one, two and four ranks, and the tests count it again.
"""

from __future__ import annotations

from dataclasses import dataclass

from vse_scale.config import Config
from vse_scale.console import size
from vse_scale.data.producer import batches_in_memory
from vse_scale.planning.activations import Activations, batch_bytes, count_activations
from vse_scale.planning.held import held_vectors
from vse_scale.planning.traffic import FLOAT, HALF, Stage, Workload
from vse_scale.training.engine import LARGEST_BUCKET


def state_bytes(work: Workload, stage: Stage, ranks: int) -> dict[str, float]:
    """Return a rank's memory by part when the update begins, activations left out.

    - weights: whole on every rank; under stage 3 its share, and on several ranks the whole while
      they are used.
    - master: the float32 copy of its share of what trains, which stages 1 to 3 update.
    - moments: the optimizer's, of what the rank updates.
    - gradients: whole under stage 0, else what the rank keeps of them: its share. Weights that do
      not train have none.
    - bucket: where stages 1 to 3 collect gradients before they reduce them.
    - average: of the weights, whole; only where they are averaged.
    - loss: the embeddings of the global batch, and the gradients of the rank's own.
    """
    whole = float(FLOAT * work.parameters)
    kept = float(FLOAT * work.trained) / (ranks if stage else 1)
    embeddings = 2.0 * FLOAT * work.embed_dim * work.global_batch
    return {
        "weights": whole + whole / ranks if stage == 3 and ranks > 1 else whole,
        "master": kept if stage else 0.0,
        "moments": work.moments * kept,
        "gradients": kept,
        "bucket": float(_bucket(work)) if stage else 0.0,
        "loss": embeddings * (1 + 1 / ranks),
        **({"average": whole} if work.averaged else {}),
    }


def checkpoint_bytes(work: Workload, stage: Stage, ranks: int) -> dict[str, float]:
    """Return the first rank's host memory for checkpoints, beside what training takes.

    - copied: what the rank holds of the state; from the first checkpoint on.
    - gathered: what others hold a part of, whole; while a checkpoint is written. None where each
      rank writes its own.
    """
    whole = float(FLOAT * work.parameters)
    moments = float(work.moments * FLOAT * work.trained)
    shared = {0: 0.0, 3: whole + moments}.get(stage, moments)
    alone = whole + moments - shared + (whole if work.averaged else 0.0)
    return {
        "copied": alone + shared / ranks,
        "gathered": shared if ranks > 1 and checkpoint_size(work) <= 1e9 * work.gather_gb else 0.0,
    }


def checkpoint_size(work: Workload) -> float:
    """Return the bytes of a checkpoint on disk: weights, moments, and the average if there is one.

    It is the same under every stage and on any number of ranks.
    """
    weights = work.parameters * (2 if work.averaged else 1)
    return float(FLOAT * (weights + work.moments * work.trained))


@dataclass(frozen=True)
class Batches:
    """Memory of a rank's pairs beside the state, in bytes.

    Attributes:
        activations: of a micro-batch.
        waiting: images that are decoded ahead.
        cached: whether gradients of one micro-batch wait for those of the next.
        captions: vectors of captions that are held; None where none are.
    """

    activations: Activations
    waiting: float
    cached: bool
    captions: float | None = None

    @classmethod
    def of(
        cls,
        config: Config,
        work: Workload,
        ranks: int,
        *,
        tokens: int,
        cuda: bool,
        bfloat16: bool,
        held: int = 0,
    ) -> Batches:
        """Count them for ``ranks`` ranks and ``held`` vectors of captions that are held.

        The other arguments are `count_activations`'s.

        Raises:
            ModelError: there is no such model.
        """
        pairs, pieces = config.data.global_batch // ranks, config.engine.micro_batches
        counted = count_activations(
            config,
            pairs // pieces,
            tokens=tokens,
            bucket=_bucket(work),
            cuda=cuda,
            bfloat16=bfloat16,
        )
        waiting = batches_in_memory(config.data.prefetch) * batch_bytes(config, pairs)
        each = FLOAT if work.held_pooled else HALF
        states = float(each * work.held_channels * held) if work.held_channels else None
        return cls(counted, float(waiting), cached=pieces > 1, captions=states)


def memory_bytes(work: Workload, batches: Batches, stage: Stage, ranks: int) -> dict[str, float]:
    """Return a rank's memory by part when it is fullest; the parts add up to the peak.

    As `state_bytes`, and ``captions``, vectors of captions that are held, ``batches``, the
    images decoded ahead, and ``activations``: by how much the fullest moment of the passes forward
    and back surpasses the update's. Stages 1 to 3 move gradients into the bucket as they are made,
    and keep their share when the pass is over.
    """
    parts = state_bytes(work, stage, ranks)
    found = batches.activations
    if stage == 3:  # there from the start to the end: the bucket, and a place for its gradients
        activations = found.alone
    elif batches.cached:  # so are those of the micro-batches before
        activations = found.alone - (int(parts["gradients"]) if stage else 0)
    elif stage:
        activations = found.with_bucket - int(parts["bucket"] + parts["gradients"])
    else:
        activations = found.with_gradients - int(parts["gradients"])
    held = {} if batches.captions is None else {"captions": batches.captions}
    return {**parts, **held, "batches": batches.waiting, "activations": float(max(0, activations))}


def memory_line(config: Config, ranks: int, *, cuda: bool, tokens: int) -> str:
    """Return what takes a rank's memory, the largest part first, in words of one line.

    Args:
        config: of the run.
        ranks: how many.
        cuda: whether they train on GPUs.
        tokens: of a batch's longest caption.

    Raises:
        ModelError: there is no such model.
        DatasetError: captions are held, and their dataset is not there.
    """
    precision = config.engine.precision
    bfloat16 = precision == "bfloat16" or (precision == "auto" and cuda)
    work = Workload.of(config, bfloat16=bfloat16)
    batches = Batches.of(
        config,
        work,
        ranks,
        tokens=tokens,
        cuda=cuda,
        bfloat16=bfloat16,
        held=held_vectors(config, tokens, pooled=work.held_pooled) if work.held_channels else 0,
    )
    parts = memory_bytes(work, batches, config.engine.zero_stage, ranks)
    ordered = sorted(parts.items(), key=lambda part: part[1], reverse=True)
    told = ", ".join(f"{name} {size(count)}" for name, count in ordered if count)
    return f"a rank takes about {size(sum(parts.values()))}: {told}"


def _bucket(work: Workload) -> int:
    """Return the bytes that gradients are collected in before they are reduced."""
    return FLOAT * min(work.trained, LARGEST_BUCKET)
