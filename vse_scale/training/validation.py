"""A validation within training, and its record for the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from vse_scale.config import Config
from vse_scale.console import progress_of_encoding
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.retrieval.encode import encode_split
from vse_scale.retrieval.intervals import intervals
from vse_scale.retrieval.metrics import DIRECTIONS, HEADLINE
from vse_scale.retrieval.ranks import query_ranks
from vse_scale.retrieval.recorded import RecordedRanks
from vse_scale.retrieval.separation import similarity_histograms
from vse_scale.run.records import EvaluationRecord
from vse_scale.training.alive import long_work
from vse_scale.world.processes import World

if TYPE_CHECKING:
    from vse_scale.training.engine import Engine

POOLED_TOKENS = 16  # of a caption whose pooling weights are kept
_DIGITS = 5


def validate(
    engine: Engine,
    tokenizer: CaptionTokenizer,
    dataset: ShardDataset,
    config: Config,
    world: World,
    *,
    step: int,
    epoch: int,
    check: Callable[[], None] | None = None,
) -> tuple[EvaluationRecord, RecordedRanks]:
    """Encode and rank ``dataset`` over all ranks, after ``step`` of ``epoch``.

    ``check`` is called between batches, see `encode_split`.

    Returns:
        The record; on the main rank with ``intervals`` of its recalls, ``pooling``, GPO's weights
        by position for both sides, and ``similarities``, histograms of matching and of hardest
        non-matching pairs; and the ranks that the recalls are of.
    """
    began = time.perf_counter()
    with progress_of_encoding(visible=world.main) as report, engine.whole_model() as model:
        embeddings = encode_split(
            model,
            tokenizer,
            dataset,
            batch=config.eval.batch,
            device=world.device,
            threads=config.data.threads,
            rank=world.rank,
            ranks=world.ranks,
            progress=report,
            check=check,
        )
        pooling = _pooling(model) if world.main else {}
    with long_work("ranking the validation split"):
        ranks = query_ranks(
            embeddings.images,
            embeddings.captions,
            embeddings.caption_to_image,
            world,
        )
        within = intervals(ranks, embeddings.caption_to_image.numpy()) if world.main else {}
    figures: dict[str, Any] = ranks.recalls().to_dict()
    rsum = figures.pop("rsum")
    record = EvaluationRecord(
        step=step,
        epoch=epoch,
        split=dataset.split,
        recalls=figures,
        rsum=rsum,
        intervals=within,
        pooling=pooling,
        similarities=similarity_histograms(embeddings) if world.main else {},
        seconds=time.perf_counter() - began,
    )
    return record, RecordedRanks.of(dataset, ranks, embeddings.caption_to_image, step)


def summary(record: EvaluationRecord) -> str:
    """Return the headline of a validation, one line for people."""
    headline = ", ".join(
        f"{record.recalls[key][HEADLINE.name]:.1f} {direction.label}"
        for key, direction in DIRECTIONS.items()
    )
    return (
        f"epoch {record.epoch + 1}: {record.split} {HEADLINE.label} {headline}, "
        f"RSUM {record.rsum:.1f}"
    )


def _pooling(model: VSEModel) -> dict[str, list[float]]:
    lengths: dict[Literal["image", "text"], int] = {
        "image": model.grid_cells,
        "text": POOLED_TOKENS,
    }
    return {
        side: _rounded(weights.tolist())
        for side, length in lengths.items()
        if (weights := model.pooling_weights(side, length)) is not None
    }


def _rounded(values: list[float]) -> list[float]:
    return [round(value, _DIGITS) for value in values]
