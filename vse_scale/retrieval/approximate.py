"""Approximate nearest neighbours by faiss, with their recall measured against the exact answer.

Douze et al., "The Faiss library", arXiv:2401.08281. Faiss proposes candidates; their similarities
are those of the embeddings themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vse_scale.errors import ConfigError, DatasetError, OutputError
from vse_scale.files import whole_file, write_json
from vse_scale.retrieval.ranks import nearest
from vse_scale.retrieval.similarities import as_rows
from vse_scale.run.extras import is_installed
from vse_shards.json_text import mapping, read_json

QUERIES = 1000  # of the sample that recall is measured on, at most
_TRAINED = 1 << 18  # rows that clusters are learnt from, at most
_BLOCK = 1 << 16  # rows that are added at a time
_WIDER = 4  # candidates for each answer
_SPREAD = 1 << 10  # rows of the digest
_EQUAL = 1e-6  # difference of similarities that are one and the same

Rows = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Quality:
    """Origin and recall of an approximate index.

    Attributes:
        faiss: its description, for faiss' index factory.
        rows: that it holds.
        digest: of some of the embeddings.
        effort: lists, or neighbours, that a search looks through; None where there is no choice.
        queries: number of queries of the sample.
        sampled: where they are from: "images" or "captions".
        recall_at_1: share of the sample whose best answer is found.
        recall_at_10: share of the ten best answers that are among the ten found.
    """

    faiss: str
    rows: int
    digest: str
    effort: int | None
    queries: int
    sampled: str
    recall_at_1: float
    recall_at_10: float

    def in_words(self) -> str:
        """Return how good it is, as a phrase."""
        return (
            f"approximate, by faiss {self.faiss}: recall@1 {self.recall_at_1:.3f}, recall@10 "
            f"{self.recall_at_10:.3f} of {self.queries:,} {self.sampled}"
        )


class Approximate:
    """An index of faiss over one side of saved embeddings.

    Args:
        index: of faiss.
        rows: (N, D) the embeddings.
    """

    def __init__(self, index: Any, rows: Rows) -> None:
        self._index, self._rows = index, rows

    def search(self, queries: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """Return similarities and rows, both (Q, k), of at most ``top`` answers, best first.

        A row of -1 is no answer, its similarity is minus infinity: the lists that were looked
        through hold fewer.
        """
        asked = np.ascontiguousarray(queries.detach().cpu().numpy(), np.float32)
        top = min(top, len(self._rows))
        _, found = self._index.search(asked, min(_WIDER * top, len(self._rows)))
        scores = np.full(found.shape, -np.inf, np.float32)
        for query, own, score in zip(asked, found, scores, strict=True):
            score[own >= 0] = self._rows[own[own >= 0]] @ query
        # By similarity, then by row, as the exact search has them.
        order = np.lexsort((found, -scores), axis=1)[:, :top]
        best, rows = (np.take_along_axis(some, order, axis=1) for some in (scores, found))
        return torch.from_numpy(best), torch.from_numpy(rows.astype(np.int64))


def open_approximate(folder: Path, side: str, rows: Rows) -> tuple[Approximate, Quality] | None:
    """Open the index of a side, if `build_approximate` made one of these embeddings.

    Raises:
        DatasetError: it is damaged, or of other embeddings.
    """
    told, path = folder / f"{side}.faiss.json", folder / f"{side}.faiss"
    if not told.is_file() or not is_installed("faiss"):
        return None
    import faiss

    again = "make it again with `vse-scale index`, or search with --exact"
    try:
        quality = Quality(**mapping(read_json(told)))
        quality.in_words()  # raises where a value is of another kind
        index = faiss.read_index(str(path))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise DatasetError(f"{path}: is damaged ({_reason(error)}); {again}") from error
    if index.ntotal != len(rows) or index.d != rows.shape[1] or quality.digest != _digest(rows):
        raise DatasetError(f"{path}: is of other embeddings than {side}.npy; {again}")
    return Approximate(index, rows), quality


def build_approximate(
    folder: Path, side: str, rows: Rows, queries: tuple[str, Rows], description: str,
    wanted: float, tell: Callable[[str], None],
) -> Quality:  # fmt: skip
    """Make an index of a side, measure it, and write both beside the embeddings.

    A search looks through as few lists as give the wanted recall@10 on the sample.

    Args:
        folder: of the embeddings.
        side: "images" or "captions".
        rows: (N, D) its embeddings.
        queries: name and embeddings (M, D) of the side that the sample is taken of. Where it is
            ``side`` itself a query is not its own answer.
        description: for faiss' index factory, such as "IVF1024,PQ32".
        wanted: recall@10.
        tell: called with a line for each step of the work.

    Raises:
        ConfigError: faiss cannot make such an index of these embeddings.
        OutputError: it cannot be written.
    """
    import faiss

    try:
        index = faiss.index_factory(rows.shape[1], description, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            chosen = _spread(len(rows), _TRAINED)
            tell(f"{side}: learning clusters from {len(chosen):,} rows")
            index.train(np.ascontiguousarray(rows[chosen], np.float32))
        tell(f"{side}: adding {len(rows):,} rows")
        for start in range(0, len(rows), _BLOCK):
            index.add(np.ascontiguousarray(rows[start : start + _BLOCK], np.float32))
    except RuntimeError as error:
        lists = max(1, len(rows) // 39)  # faiss asks for 39 rows a list
        raise ConfigError(
            f"--faiss {description[:40]}: faiss cannot make it of {len(rows):,} rows of "
            f"{rows.shape[1]} numbers ({_reason(error)}); give another, such as IVF{lists},Flat"
        ) from error
    sample = _Sample.of(side, rows, queries)
    approximate = Approximate(index, rows)
    for effort in _efforts(index):
        recalls = sample.recalls(approximate)
        tell(f"{side}: recall@1 {recalls[0]:.3f}, @10 {recalls[1]:.3f}, effort {effort or 'fixed'}")
        if recalls[1] >= wanted:
            break
    quality = Quality(
        description, len(rows), _digest(rows), effort, len(sample.queries), queries[0], *recalls
    )
    (folder / f"{side}.faiss.json").unlink(missing_ok=True)
    path = folder / f"{side}.faiss"
    with whole_file(path) as partial:
        try:
            faiss.write_index(index, str(partial))
        except RuntimeError as error:  # faiss knows no OSError
            raise OutputError(
                f"{path}: cannot be written ({_reason(error)}); make room there"
            ) from error
    write_json(folder / f"{side}.faiss.json", asdict(quality))
    return quality


@dataclass(frozen=True)
class _Sample:
    """Queries, the row of each that is no answer to it (-1: all are), and exact similarities."""

    queries: Tensor
    own: npt.NDArray[np.int64]
    best: npt.NDArray[np.float32]

    @classmethod
    def of(cls, side: str, rows: Rows, queries: tuple[str, Rows]) -> _Sample:
        name, candidates = queries
        chosen = _spread(len(candidates), QUERIES)
        asked = torch.from_numpy(np.ascontiguousarray(candidates[chosen], np.float32))
        own = chosen if name == side else np.full(len(chosen), -1)
        scores, found = nearest(asked, as_rows(rows), 11)
        return cls(asked, own, _without(own, found.numpy(), scores.numpy(), 10))

    def recalls(self, approximate: Approximate) -> tuple[float, float]:
        """Return recall@1 and recall@10; answers as similar as the exact ones count as those."""
        scores, found = approximate.search(self.queries, 11)
        got = _without(self.own, found.numpy(), scores.numpy(), 10)
        first, all_ten = (
            float(np.mean(got[:, :k] >= self.best[:, k - 1 : k] - _EQUAL))
            for k in (1, min(10, self.best.shape[1]))
        )
        return first, all_ten


def _without(
    own: npt.NDArray[np.int64], found: npt.NDArray[np.int64], scores: npt.NDArray[np.float32],
    top: int,
) -> npt.NDArray[np.float32]:  # fmt: skip
    """Return the ``top`` best similarities of each query, its own row left out."""
    rest = np.where(found == own[:, None], -np.inf, scores)
    most = max(1, min(top, found.shape[1] - int((own >= 0).any())))
    return -np.sort(-rest, axis=1)[:, :most]


def _efforts(index: Any) -> Iterator[int | None]:
    """Set the effort of a search to 1, 2, 4 and so on, up to all; yield each."""
    import faiss

    try:
        lists = faiss.extract_index_ivf(index).nlist
    except RuntimeError:  # it has no lists
        yield None
        return
    effort = 1
    while True:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", effort)
        yield effort
        if effort == lists:
            return
        effort = min(2 * effort, lists)


def _spread(rows: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most ``most`` of ``rows`` row numbers, evenly spread."""
    return np.unique(np.linspace(0, rows - 1, min(rows, most)).astype(np.int64))


def _digest(rows: Rows) -> str:
    return hashlib.sha256(rows[_spread(len(rows), _SPREAD)].tobytes()).hexdigest()


def _reason(error: Exception) -> str:
    """Return the last part of an error of faiss, which begins with its source file."""
    return (
        str(error).strip().splitlines()[-1].rpartition("failed: ")[2][-160:] or type(error).__name__
    )
