"""Make a run's report from its folder, its best model and its dataset."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from vse_scale.console import log
from vse_scale.data.mixing import folder_with
from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingOptions
from vse_scale.inputs.spec import InputSpec
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.folder import settings_folder
from vse_scale.model.vse import VSEModel
from vse_scale.report.data import KnownFindings, PoolingCurve
from vse_scale.report.examples import (
    Example,
    Failures,
    illustrate,
    pick_examples,
    pick_failures,
)
from vse_scale.report.page import write_report
from vse_scale.retrieval.encode import Embeddings, Progress, encode_split
from vse_scale.retrieval.intervals import intervals
from vse_scale.retrieval.ranks import QueryRanks, query_ranks
from vse_scale.retrieval.recorded import RecordedRanks
from vse_scale.retrieval.separation import similarity_histograms
from vse_scale.run.folder import RunRecords

_FAILURE_SIDE = 120  # pixels of a failure's thumbnails: there are many of them


class Pooled(Protocol):
    """A model that pools with weights of its own, such as `VSEModel`."""

    grid_cells: int
    input_spec: InputSpec

    def pooling_weights(self, side: Literal["image", "text"], length: int) -> Tensor | None:
        """Return the weights (length,) of one side."""
        ...


class ModelFindings:
    """Findings of a run's best model on the evaluated split, each computed when first read."""

    def __init__(
        self,
        run: RunRecords,
        split: str,
        *,
        device: torch.device | str,
        threads: int,
        progress: Progress | None = None,
        folder: Path | None = None,
    ) -> None:
        """Take the best model of ``run``, and the ``split`` that it was evaluated on.

        Args:
            run: its records.
            split: of its dataset.
            device: to encode on.
            threads: to decode images with.
            progress: called while images and captions are encoded.
            folder: of a checkpoint, to take in place of the best model.
        """
        self._run, self._split = run, split
        self._folder = folder or run.folder.model_folder
        self._device, self._threads, self._progress = device, threads, progress

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """Examples of both directions; none of region features, which cannot be looked at."""
        if not self._dataset.holds("images"):
            return ()
        return illustrate(pick_examples(self._embeddings), self._embeddings, self._dataset)

    @cached_property
    def failures(self) -> Failures | None:
        """The worst failures; None of region features, which cannot be looked at."""
        if not self._dataset.holds("images"):
            return None
        picks, total, queries = pick_failures(self._embeddings)
        shown = illustrate(picks, self._embeddings, self._dataset, _FAILURE_SIDE)
        return Failures(shown, total, queries)

    @cached_property
    def intervals(self) -> dict[str, Any]:
        """Intervals of the best model's recalls; a checkpoint's would be of other recalls."""
        if self._folder != self._run.folder.model_folder:
            return {}
        return intervals(self._ranks, self._embeddings.caption_to_image.numpy())

    def recorded_ranks(self, step: int) -> RecordedRanks:
        """Return the ranks as a validation after ``step`` records them."""
        index = self._embeddings.caption_to_image
        return RecordedRanks.of(self._dataset, self._ranks, index, step)

    @cached_property
    def similarities(self) -> dict[str, list[int]]:
        """Histograms of the captions' similarities."""
        return similarity_histograms(self._embeddings)

    @cached_property
    def pooling(self) -> list[PoolingCurve]:
        """The pooling weights for a full image, and for captions of usual lengths."""
        rows = range(len(self._dataset))
        texts = [caption.text for row in rows for caption in self._dataset.record(row).captions]
        limit = self._model.input_spec.max_tokens
        lengths = self._tokenizer.encode(texts, max_tokens=limit)[1]
        return pooling_curves(self._model, lengths.tolist())

    @cached_property
    def _model(self) -> VSEModel:
        return VSEModel.from_pretrained(self._folder).to(self._device)

    @cached_property
    def _tokenizer(self) -> CaptionTokenizer:
        return CaptionTokenizer.load(settings_folder(self._folder))

    @cached_property
    def _dataset(self) -> ShardDataset:
        run, split = self._run, self._split
        path = run.setting("data.path")
        folders = [path] if isinstance(path, str) else path
        staging = StagingOptions(run.setting("data.cache_dir"), run.setting("data.cache_gb", 100.0))
        return ShardDataset(folder_with(split, folders) or folders[0], split, staging)

    @cached_property
    def _ranks(self) -> QueryRanks:
        rows = self._embeddings
        return query_ranks(rows.images, rows.captions, rows.caption_to_image)

    @cached_property
    def _embeddings(self) -> Embeddings:
        return encode_split(
            self._model,
            self._tokenizer,
            self._dataset,
            batch=int(self._run.setting("eval.batch", 64)),
            device=self._device,
            threads=self._threads,
            progress=self._progress,
        )


def report_run(
    run_dir: Path,
    out: Path | None = None,
    *,
    device: torch.device | str,
    threads: int,
    progress: Progress | None = None,
    model: Path | None = None,
) -> Path:
    """Write ``run_dir``/report.html, or ``out``, with examples from the evaluated split.

    A run without a model or an evaluation gets a report without examples and failures. Examples are
    those of the best model, or of ``model``, a checkpoint's folder.

    Raises:
        OutputError: ``run_dir`` is missing or damaged.
        ModelError: its model is damaged.
        DatasetError: the dataset it was evaluated on is gone or damaged.
    """
    run = RunRecords.load(run_dir)
    best = run.results.best
    if best is None or not best.split or not run.folder.model_folder.is_dir():
        return write_report(out, run, KnownFindings())
    found = ModelFindings(
        run, best.split, device=device, threads=threads, progress=progress, folder=model
    )
    written = write_report(out, run, found)
    if model is None and run.results.steps is not None and RecordedRanks.of_run(run) is None:
        _record(found.recorded_ranks(best.step), run.folder.ranks_file)
    return written


def _record(ranks: RecordedRanks, path: Path) -> None:
    """Write the ranks that a run of an earlier release lacks, for its comparison with another."""
    try:
        ranks.save(path)
    except OSError as error:  # a run of another user
        log.info("%s: is not written (%s)", path, error.strerror)


def pooling_curves(model: Pooled, caption_lengths: Sequence[int]) -> list[PoolingCurve]:
    """Read GPO's weights for a full grid and for short, usual and long captions.

    These are the 10th, 50th and 90th percentile of ``caption_lengths``, in tokens.
    """
    quantiles = np.percentile(caption_lengths, [10, 50, 90], method="nearest")
    unit = "cells" if model.input_spec.pixels else "regions"
    asked: list[tuple[Literal["image", "text"], str, int]] = [("image", unit, model.grid_cells)]
    asked += [("text", "tokens", length) for length in sorted({int(n) for n in quantiles})]
    with torch.no_grad():
        return [
            PoolingCurve(side, unit, tuple(weights.tolist()))
            for side, unit, length in asked
            if (weights := model.pooling_weights(side, length)) is not None
        ]
