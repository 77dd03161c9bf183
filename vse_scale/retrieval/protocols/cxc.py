"""Crisscrossed Captions: retrieval within and between images and captions of the COCO 5K splits.

Parekh et al., "Crisscrossed Captions: Extended Intramodal and Intermodal Semantic Similarity
Judgments for MS-COCO", EACL 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vse_kernels import retrieval_ranks
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.gallery import Gallery
from vse_scale.retrieval.metrics import (
    DIRECTIONS,
    Direction,
    DirectionRecalls,
    percentages,
    rsum,
)
from vse_scale.retrieval.protocols.base import RankingProtocol, needed_embeddings
from vse_scale.retrieval.protocols.correlation import CORRELATION_TASKS, Correlation, correlations
from vse_scale.retrieval.protocols.cxc_ratings import (
    RATED,
    Positives,
    Task,
    check_ratings,
    rated_part,
    read_positives,
    read_ratings,
)
from vse_scale.retrieval.ranks import matching_rows
from vse_scale.world.processes import ALONE, Processes

_WITHIN = (
    Direction("t2t", "text to text", "t→t", "text", "text", "captions", "captions"),
    Direction("i2i", "image to image", "i→i", "image", "image", "pictures", "pictures"),
)
_TASKS = {**DIRECTIONS, **{task.key: task for task in _WITHIN}}
TASKS: dict[Task, str] = {key: task.label for key, task in _TASKS.items()}
_CHUNK = 65536  # pairs whose similarities are computed at once


@dataclass(frozen=True)
class CxcEvaluation:
    """Recalls of the four tasks, over how many queries each was taken, and the correlations."""

    recalls: dict[Task, DirectionRecalls]
    queries: dict[Task, int]
    as_published: bool
    correlations: dict[str, Correlation] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return the figures for JSON; ``rsum`` is that of i2t and t2i."""
        return {
            **{task: recalls.to_dict() for task, recalls in self.recalls.items()},
            "rsum": rsum([self.recalls[between] for between in DIRECTIONS]),
            "protocol": "cxc",
            "as_published": self.as_published,
            "queries": dict(self.queries),
            "correlations": {task: found.to_dict() for task, found in self.correlations.items()},
        }

    def table(self) -> str:
        """Return an aligned table for a terminal, under 80 columns, without a final newline."""
        reading = ", as published" if self.as_published else ""
        metrics = percentages()
        heads = "".join(f"{metric.column:>8}" for metric in metrics)
        lines = [f"cxc{reading}", "", f"{'':16}{'queries':>9}{heads}"]
        for task, way in self.recalls.items():
            figures = "".join(f"{metric.text(vars(way)):>8}" for metric in metrics)
            lines.append(f"{TASKS[task]:16}{self.queries[task]:>9,}{figures}")
        if self.correlations:
            lines += ["", f"{'':22}{'queries':>9}{'Spearman':>10}{'std':>6}"]
        for name, found in self.correlations.items():
            figures = f"{found.queries:>9,}{found.mean:>10.1f}{found.std:>6.1f}"
            lines.append(f"{CORRELATION_TASKS[name]:22}{figures}")
        return "\n".join(lines)

    def markdown(self, name: str) -> str:
        """Return tables for a paper or a page, one line each called ``name``, in percent."""
        metrics = percentages()
        labels = " | ".join(metric.label for metric in metrics)
        recalls = [m.text(vars(way)) for way in self.recalls.values() for m in metrics]
        lines = [
            "| CxC | " + " | ".join(f"{_TASKS[key].short} {labels}" for key in self.recalls) + " |",
            "|---|" + "---:|" * len(recalls),
            f"| {name} | {' | '.join(recalls)} |",
        ]
        if self.correlations:
            found = [f"{c.mean:.1f} ± {c.std:.1f}" for c in self.correlations.values()]
            tasks = [task.upper() for task in self.correlations]
            lines += [
                "",
                f"| CxC, Spearman | {' | '.join(tasks)} |",
                "|---|" + "---:|" * len(found),
                f"| {name} | {' | '.join(found)} |",
            ]
        return "\n".join(lines)


class Cxc(RankingProtocol):
    """Crisscrossed Captions of the COCO 5K splits.

    Args:
        cxc: holds ``sits_{split}.csv``, ``sts_{split}.csv`` and ``sis_{split}.csv``.
        as_published: see `evaluate_cxc`.
    """

    options = ("cxc", "as_published")
    required: ClassVar[Mapping[str, str]] = {"cxc": "DIR, the folder of its CSV files"}
    takes_similarities = False

    def __init__(self, cxc: Path, as_published: bool = False) -> None:
        self._folder, self._as_published = cxc, as_published

    def check(self, split: str, captions_per_image: NDArray[np.int64] | None = None) -> None:
        """Refuse a folder without the ratings of ``split``."""
        check_ratings(self._folder, _rated_split(split))

    def rank(
        self,
        gallery: Gallery,
        *,
        split: str = "test",
        order: Sequence[int | str] | None = None,
        processes: Processes = ALONE,
    ) -> CxcEvaluation:
        """Rank by the ratings; see `evaluate_cxc`."""
        return evaluate_cxc(
            needed_embeddings(gallery),
            self._folder,
            _rated_split(split),
            as_published=self._as_published,
            processes=processes,
        )


def _rated_split(split: str) -> str:
    return split if split == "val" else "test"  # the two that are rated


def evaluate_cxc(
    embeddings: Embeddings,
    folder: Path,
    split: str = "test",
    *,
    as_published: bool = False,
    processes: Processes = ALONE,
) -> CxcEvaluation:
    """Rank a COCO 5K split by the ratings in ``folder``.

    Args:
        embeddings: holds every image and caption of the ratings; others are left out.
        folder: holds ``sits_{split}.csv``, ``sts_{split}.csv`` and ``sis_{split}.csv``.
        split: "test" or "val".
        as_published: leave the query itself in its own ranking with a similarity of zero, as the
            code of VSE-infinity does, where it can still come before a right answer.
        processes: that share the ranking; all call with the same embeddings and get the same
            recalls, and the main one the correlations.

    Raises:
        DatasetError: a file is missing or malformed, or names what ``embeddings`` lack.
    """
    embeddings = rated_part(embeddings, folder, split)
    positives = read_positives(embeddings, folder, split)
    ranked = rank_tasks(embeddings, positives, as_published=as_published, processes=processes)
    if not processes.main:
        return ranked
    images, captions = matching_rows(embeddings.images, embeddings.captions)
    rows = {"image": images, "text": captions}
    sides = {task: (rows[first], rows[second]) for task, (first, second) in RATED.items()}
    found = correlations(read_ratings(embeddings, folder, split), sides)
    return replace(ranked, correlations=found)


def rank_tasks(
    embeddings: Embeddings,
    positives: Positives,
    *,
    as_published: bool = False,
    processes: Processes = ALONE,
) -> CxcEvaluation:
    """Rank all tasks; a query without a right answer is no query."""
    images, captions = matching_rows(embeddings.images, embeddings.captions)
    rows = {"image": images, "text": captions}
    recalls: dict[Task, DirectionRecalls] = {}
    counts: dict[Task, int] = {}
    for task, sides in _TASKS.items():
        queries, candidates = rows[sides.query], rows[sides.answer]
        pairs = positives[task][torch.argsort(positives[task][:, 0], stable=True)]
        answers = pairs[:, 0].bincount(minlength=len(queries))
        offsets = torch.cat([answers.new_zeros(1), answers.cumsum(0)])
        itself = torch.arange(len(queries)) if queries is candidates else None
        ranks = _shared_ranks(queries, candidates, offsets, pairs[:, 1], itself, processes)
        if as_published and itself is not None:
            # The query is one more candidate, of similarity zero.
            ranks += (_best_scores(queries.cpu(), candidates.cpu(), pairs) <= 0).long()
        ranks = ranks[answers > 0]
        recalls[task] = DirectionRecalls.from_ranks(ranks)
        counts[task] = len(ranks)
    return CxcEvaluation(recalls, counts, as_published)


def _shared_ranks(
    queries: Tensor,
    candidates: Tensor,
    offsets: Tensor,
    positives: Tensor,
    itself: Tensor | None,
    processes: Processes,
) -> Tensor:
    """Return the ranks (M,) of all queries, each process having ranked its part of them."""
    device = queries.device
    ranks = torch.zeros(len(queries), dtype=torch.int64, device=device)
    start, stop = processes.rows(len(queries))
    first, last = int(offsets[start]), int(offsets[stop])
    ranks[start:stop] = retrieval_ranks(
        queries[start:stop],
        candidates,
        (offsets[start : stop + 1] - first).to(device),
        positives[first:last].to(device),
        excluded=None if itself is None else itself[start:stop].to(device),
        row_start=start,
    )
    processes.across(ranks, "sum")
    return ranks.cpu()


def _best_scores(queries: Tensor, candidates: Tensor, pairs: Tensor) -> Tensor:
    """Return (M,) the similarity of each query's best right answer, -inf where it has none."""
    best = queries.new_full((len(queries),), -torch.inf)
    for part in torch.split(pairs, _CHUNK):
        scores = (queries[part[:, 0]] * candidates[part[:, 1]]).sum(dim=1)
        best.scatter_reduce_(0, part[:, 0], scores, "amax")
    return best
