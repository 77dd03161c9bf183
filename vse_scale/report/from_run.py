"""Make a run's report from its folder, its best model and its dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from vse_scale.data.mixing import folder_with
from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingOptions
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.report.curves import PoolingCurve
from vse_scale.report.examples import (
    Example,
    Failures,
    illustrate,
    pick_examples,
    pick_failures,
)
from vse_scale.report.page import build_report
from vse_scale.retrieval.encode import Progress, encode_split
from vse_scale.retrieval.separation import similarity_histograms
from vse_scale.run.folder import RunFolder

_FAILURE_SIDE = 120  # pixels of a failure's thumbnails: there are many of them


class Pooled(Protocol):
    """What is asked of a model here; `VSEModel` has it."""

    grid_cells: int

    def pooling_weights(self, side: Literal["image", "text"], length: int) -> Tensor:
        """Return the weights (length,) of one side."""
        ...


def report_run(
    run_dir: Path,
    out: Path | None = None,
    *,
    device: torch.device | str,
    threads: int,
    progress: Progress | None = None,
) -> Path:
    """Write ``run_dir``/report.html, or ``out``, with examples from the evaluated split.

    A run without a model or an evaluation yet gets a report without what these would show.

    Raises:
        OutputError: ``run_dir`` is missing or damaged.
        ModelError: its model is damaged.
        DatasetError: the dataset it was evaluated on is gone or damaged.
    """
    run = RunFolder.load(run_dir)
    examples: tuple[Example, ...] = ()
    failures: Failures | None = None
    similarities: dict[str, list[int]] | None = None
    pooling: list[PoolingCurve] = []
    folder = run_dir / "model"
    if folder.is_dir() and "split" in run.results:
        model = VSEModel.from_pretrained(folder).to(device)
        tokenizer = CaptionTokenizer.load(folder)
        path, split = run.setting("data.path"), run.results["split"]
        folders = [path] if isinstance(path, str) else path
        staging = StagingOptions(run.setting("data.cache_dir"), run.setting("data.cache_gb", 100.0))
        dataset = ShardDataset(folder_with(split, folders) or folders[0], split, staging)
        longest = int(run.setting("data.max_caption_tokens", 128))
        embeddings = encode_split(
            model,
            tokenizer,
            dataset,
            batch=int(run.setting("eval.batch", 64)),
            device=device,
            threads=threads,
            max_caption_tokens=longest,
            progress=progress,
        )
        if dataset.holds("images"):  # region features cannot be looked at
            examples = illustrate(pick_examples(embeddings), embeddings, dataset)
            picks, total, queries = pick_failures(embeddings)
            shown = illustrate(picks, embeddings, dataset, _FAILURE_SIDE)
            failures = Failures(shown, total, queries)
        similarities = similarity_histograms(embeddings)
        texts = [c.text for i in range(len(dataset)) for c in dataset.record(i).captions]
        pooling = pooling_curves(model, tokenizer.encode(texts, max_tokens=longest)[1].tolist())
    return build_report(
        run_dir,
        out,
        examples=examples,
        failures=failures,
        pooling=pooling,
        similarities=similarities,
    )


def pooling_curves(model: Pooled, caption_lengths: Sequence[int]) -> list[PoolingCurve]:
    """Read GPO's weights for a full grid and for short, usual and long captions.

    These are the 10th, 50th and 90th percentile of ``caption_lengths``, in tokens.
    """
    quantiles = np.percentile(caption_lengths, [10, 50, 90], method="nearest")
    asked: list[tuple[Literal["image", "text"], int]] = [("image", model.grid_cells)]
    asked += [("text", length) for length in sorted({int(length) for length in quantiles})]
    with torch.no_grad():
        return [
            PoolingCurve(side, tuple(model.pooling_weights(side, length).tolist()))
            for side, length in asked
        ]
