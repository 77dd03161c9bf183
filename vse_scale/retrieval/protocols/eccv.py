"""ECCV Caption: retrieval of all right answers in the COCO 5K test set, not of one.

Chun et al., "ECCV Caption: Correcting False Negatives by Collecting Machine-and-Human-verified
Image-Caption Associations for MS-COCO", ECCV 2022. The positives are read from the JSON files that
its authors publish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vse_kernels.exact import full_precision
from vse_scale.errors import DatasetError
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.gallery import Gallery
from vse_scale.retrieval.metrics import DIRECTIONS
from vse_scale.retrieval.protocols.base import RankingProtocol, needed_embeddings
from vse_scale.retrieval.protocols.coco_ids import number
from vse_scale.retrieval.ranks import matching_rows
from vse_scale.retrieval.similarities import open_array
from vse_scale.world.processes import ALONE, Processes
from vse_shards.json_text import mapping, read_json

# By the side of the model that embeds the queries.
_FILES = {"image": "eccv_image_to_caption.json", "text": "eccv_caption_to_image.json"}
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


@dataclass(frozen=True)
class EccvEvaluation:
    """The figures by the keys of `DIRECTIONS`."""

    figures: Mapping[str, EccvFigures]

    def table(self) -> str:
        """Return an aligned table for a terminal."""
        return eccv_table(self.figures)

    def markdown(self, name: str) -> str:
        """Return a table for a paper or a page, one line called ``name``."""
        return eccv_table(self.figures, name)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {key: figures.to_dict() for key, figures in self.figures.items()}


class Eccv(RankingProtocol):
    """ECCV Caption on the COCO 5K test set; see `evaluate_eccv`.

    Args:
        eccv: the folder of its JSON files.
    """

    options = ("eccv",)
    required: ClassVar[Mapping[str, str]] = {"eccv": "DIR, the folder of its JSON files"}
    takes_similarities = False

    def __init__(self, eccv: Path) -> None:
        self._folder = eccv

    def check(self, split: str, captions_per_image: NDArray[np.int64] | None = None) -> None:
        """Refuse a folder without its files."""
        for file in _FILES.values():
            _read(self._folder / file)

    def rank(
        self,
        gallery: Gallery,
        *,
        split: str = "test",
        order: Sequence[int | str] | None = None,
        processes: Processes = ALONE,
    ) -> EccvEvaluation:
        """Rank by the positives, each process all of them."""
        return EccvEvaluation(evaluate_eccv(needed_embeddings(gallery), self._folder))


def evaluate_eccv(embeddings: Embeddings, folder: Path) -> dict[str, EccvFigures]:
    """Rank the COCO 5K test set by the positives in ``folder``.

    Args:
        embeddings: of the COCO 5K test set, with COCO's own ids.
        folder: holds ``eccv_image_to_caption.json`` and ``eccv_caption_to_image.json``; where
            ``coco_test_ids.npy`` is there too, only its captions are ranked.

    Raises:
        DatasetError: a file is missing or damaged, or names what ``embeddings`` lack.
    """
    row_of = {
        "image": {number(name): row for row, name in enumerate(embeddings.image_ids)},
        "text": {number(name): row for row, name in enumerate(embeddings.caption_ids)},
    }
    images, captions = matching_rows(embeddings.images, embeddings.captions)
    if (folder / _CAPTIONS).is_file():
        ranked = _rows(_ranked_captions(folder / _CAPTIONS), row_of["text"], folder / _CAPTIONS)
        captions = captions[torch.tensor(ranked)]
        row_of["text"] = {name: row for row, name in enumerate(_names(ranked, embeddings))}
    embedded = {"image": images, "text": captions}
    result = {}
    for key, way in DIRECTIONS.items():
        file, known = folder / _FILES[way.query], row_of[way.answer]
        answers = _read(file)
        queries = _rows(list(answers), row_of[way.query], file)
        right = [[known[name] for name in found if name in known] for found in answers.values()]
        if not all(right):
            raise DatasetError(
                f"{file}: has a query none of whose answers is in the evaluated data; "
                "evaluate the COCO 5K test split with COCO's own ids"
            )
        # One of the answers is a sixth caption, which is not ranked: R counts it all the same.
        counts = [len(set(found)) for found in answers.values()]
        result[key] = retrieval_figures(
            embedded[way.query][torch.tensor(queries)], embedded[way.answer], right, counts
        )
    return result


def eccv_table(found: Mapping[str, EccvFigures], name: str | None = None) -> str:
    """Return an aligned table for a terminal; with ``name`` one of Markdown, a line called so."""
    figures = {
        key: [f"{v:.1f}" for v in (found[key].map_at_r, found[key].r_precision, found[key].r1)]
        for key in DIRECTIONS
    }
    if name is not None:
        heads = " | ".join(f"{way.short} mAP@R | R-P | R@1" for way in DIRECTIONS.values())
        cells = " | ".join(cell for key in DIRECTIONS for cell in figures[key])
        return "\n".join(
            [
                f"| ECCV Caption | {heads} |",
                "|---|" + "---:|" * sum(map(len, figures.values())),
                f"| {name} | {cells} |",
            ]
        )
    lines = [f"{'ECCV Caption':16}{'queries':>9}{'mAP@R':>8}{'R-P':>8}{'R@1':>8}"]
    for key, way in DIRECTIONS.items():
        cells = "".join(f"{figure:>8}" for figure in figures[key])
        lines.append(f"{way.label:16}{found[key].queries:>9,}{cells}")
    return "\n".join(lines)


@full_precision()
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


def _ranked_captions(file: Path) -> list[int]:
    array = open_array(file)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise DatasetError(
            f"{file}: holds {array.dtype} of shape {array.shape}, not a list of COCO's numbers; "
            "download it again"
        )
    found: list[int] = array.tolist()
    return found


def _read(file: Path) -> dict[int, list[int]]:
    try:
        raw = mapping(read_json(file))
        answers = {int(query): [int(name) for name in found] for query, found in raw.items()}
    except OSError as error:
        raise DatasetError(
            f"{file}: cannot be read ({error.strerror}); give the folder of ECCV Caption's files"
        ) from error
    except (ValueError, TypeError, OverflowError) as error:
        raise DatasetError(f"{file}: is damaged ({error}); download it again") from error
    if not answers or not all(answers.values()):
        raise DatasetError(f"{file}: holds a query without right answers; download it again")
    return answers
