"""ECCV Caption: retrieval of all right answers in the COCO 5K test set, not of one.

Chun et al., "ECCV Caption: Correcting False Negatives by Collecting Machine-and-Human-verified
Image-Caption Associations for MS-COCO", ECCV 2022. The positives are read from the JSON files that
its authors publish.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vse_scale.errors import DatasetError
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.protocols.coco_ids import number
from vse_scale.retrieval.ranks import matching_rows

_FILES = {"i2t": "eccv_image_to_caption.json", "t2i": "eccv_caption_to_image.json"}
_CAPTIONS = "coco_test_ids.npy"  # the captions that are ranked, five an image
_TILE = 128  # queries whose scores are sorted at once


@dataclass(frozen=True)
class EccvFigures:
    """Of one direction, in percent: mAP@R, R-precision and recall at 1, over ``queries``."""

    map_at_r: float
    r_precision: float
    r1: float
    queries: int

    def to_dict(self) -> dict[str, float]:
        """Return the figures for JSON."""
        return asdict(self)


def evaluate_eccv(embeddings: Embeddings, folder: Path) -> dict[str, EccvFigures]:
    """Rank the COCO 5K test set by the positives in ``folder``.

    Args:
        embeddings: of the COCO 5K test set, with COCO's own ids.
        folder: holds ``eccv_image_to_caption.json`` and ``eccv_caption_to_image.json``; where
            ``coco_test_ids.npy`` is there too, only its captions are ranked.

    Raises:
        DatasetError: a file is missing or damaged, or names what ``embeddings`` lack.
    """
    image_row = {number(name): row for row, name in enumerate(embeddings.image_ids)}
    caption_row = {number(name): row for row, name in enumerate(embeddings.caption_ids)}
    images, captions = matching_rows(embeddings.images, embeddings.captions)
    if (folder / _CAPTIONS).is_file():
        ranked = _rows(np.load(folder / _CAPTIONS).tolist(), caption_row, folder / _CAPTIONS)
        captions = captions[torch.tensor(ranked)]
        caption_row = {name: row for row, name in enumerate(_names(ranked, embeddings))}
    result = {}
    for way, file in _FILES.items():
        first, second = (image_row, caption_row) if way == "i2t" else (caption_row, image_row)
        answers = _read(folder / file)
        queries = _rows(list(answers), first, folder / file)
        right = [[second[name] for name in found if name in second] for found in answers.values()]
        if not all(right):
            raise DatasetError(
                f"{folder / file}: has a query none of whose answers is in the evaluated data; "
                "evaluate the COCO 5K test split with COCO's own ids"
            )
        sources, targets = (images, captions) if way == "i2t" else (captions, images)
        # One of the answers is a sixth caption, which is not ranked: R counts it all the same.
        counts = [len(set(found)) for found in answers.values()]
        result[way] = retrieval_figures(sources[torch.tensor(queries)], targets, right, counts)
    return result


def eccv_table(found: Mapping[str, EccvFigures], name: str | None = None) -> str:
    """Return an aligned table for a terminal; with ``name`` one of Markdown, a line called so."""
    ways = {"i2t": "image to text", "t2i": "text to image"}
    figures = {
        way: [f"{v:.1f}" for v in (part.map_at_r, part.r_precision, part.r1)]
        for way, part in found.items()
    }
    if name is not None:
        cells = " | ".join(figures["i2t"] + figures["t2i"])
        return "\n".join(
            [
                "| ECCV Caption | i→t mAP@R | R-P | R@1 | t→i mAP@R | R-P | R@1 |",
                "|---|---:|---:|---:|---:|---:|---:|",
                f"| {name} | {cells} |",
            ]
        )
    lines = [f"{'ECCV Caption':16}{'queries':>9}{'mAP@R':>8}{'R-P':>8}{'R@1':>8}"]
    for way, title in ways.items():
        cells = "".join(f"{figure:>8}" for figure in figures[way])
        lines.append(f"{title:16}{found[way].queries:>9,}{cells}")
    return "\n".join(lines)


def retrieval_figures(
    queries: Tensor, candidates: Tensor, right: list[list[int]], counts: list[int]
) -> EccvFigures:
    """Return mAP@R, R-precision and R@1 of ``queries`` (Q, D) among ``candidates`` (N, D).

    R is each query's number of right answers (Musgrave et al., "A Metric Learning Reality Check",
    ECCV 2020). Among equal scores wrong answers come first, so that a collapsed model gains
    nothing by luck.

    Args:
        queries: embeddings.
        candidates: embeddings.
        right: for each query the rows of its right answers, at least one.
        counts: for each query R, at least the number of its rows.
    """
    average, precision, first = [], [], []
    for start in range(0, len(queries), _TILE):
        scores = (queries[start : start + _TILE] @ candidates.T).cpu()
        part = slice(start, start + _TILE)
        for row, answers, count in zip(scores, right[part], counts[part], strict=True):
            is_right = torch.zeros(len(row), dtype=torch.bool)
            is_right[answers] = True
            wrong_first = torch.argsort(is_right.to(torch.uint8), stable=True)
            best = torch.argsort(row[wrong_first], descending=True, stable=True)[:count]
            hits = is_right[wrong_first[best]].double()
            precisions = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
            average.append(float((precisions * hits).sum()) / count)
            precision.append(float(hits.sum()) / count)
            first.append(float(hits[0]))
    figures = [100 * float(np.mean(values)) for values in (average, precision, first)]
    return EccvFigures(figures[0], figures[1], figures[2], len(right))


def _names(rows: list[int], embeddings: Embeddings) -> list[int]:
    return [number(embeddings.caption_ids[row]) for row in rows]


def _rows(names: list[int], known: dict[int, int], file: Path) -> list[int]:
    missing = [name for name in names if name not in known]
    if missing:
        raise DatasetError(
            f"{file}: names {len(missing):,} items that the evaluated data lacks, the first is "
            f"{missing[0]}; evaluate the COCO 5K test split with COCO's own ids"
        )
    return [known[name] for name in names]


def _read(file: Path) -> dict[int, list[int]]:
    try:
        raw: Any = json.loads(file.read_text(encoding="utf-8"))
        answers = {int(query): [int(name) for name in found] for query, found in raw.items()}
    except OSError as error:
        raise DatasetError(
            f"{file}: cannot be read ({error.strerror}); give the folder of ECCV Caption's files"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{file}: is damaged ({error}); download it again") from error
    if not answers or not all(answers.values()):
        raise DatasetError(f"{file}: holds a query without right answers; download it again")
    return answers
