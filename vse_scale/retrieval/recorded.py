"""The ranks of a run's best validation, a file beside its results."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vse_scale.data.shards import ShardDataset
from vse_scale.errors import OutputError
from vse_scale.files import write_text
from vse_scale.retrieval.ranks import QueryRanks
from vse_scale.run.folder import RunRecords
from vse_shards.json_text import mapping, parse_json
from vse_shards.plain_files import read_plain

_ARRAYS = ("image_queries", "i2t", "t2i", "caption_to_image")


@dataclass(frozen=True)
class RecordedRanks:
    """The rank of every query of a validation, and what tells whether two have the same queries.

    Attributes:
        step: of the validation.
        split: that was ranked.
        shards: sha256 over the digests of its shards.
        ranks: of its queries.
        caption_to_image: (C,) int64, each caption's image.
    """

    step: int
    split: str
    shards: str
    ranks: QueryRanks
    caption_to_image: NDArray[np.int64]

    @classmethod
    def of(
        cls, dataset: ShardDataset, ranks: QueryRanks, caption_to_image: torch.Tensor, step: int
    ) -> RecordedRanks:
        """Return the ranks of ``dataset`` after ``step``."""
        digest = hashlib.sha256("".join(dataset.shard_digests).encode()).hexdigest()
        return cls(step, dataset.split, digest, ranks, caption_to_image.numpy())

    def same_queries(self, other: RecordedRanks) -> bool:
        """Return whether ``other`` is of the same images and captions."""
        return self.shards == other.shards and np.array_equal(
            self.caption_to_image, other.caption_to_image
        )

    def save(self, path: Path) -> None:
        """Write ``path``, one JSON object, whole or not at all."""
        arrays = {
            "image_queries": self.ranks.image_queries.tolist(),
            "i2t": self.ranks.i2t.tolist(),
            "t2i": self.ranks.t2i.tolist(),
            "caption_to_image": self.caption_to_image.tolist(),
        }
        head = {"step": self.step, "split": self.split, "shards": self.shards}
        write_text(path, json.dumps(head | arrays, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: Path) -> RecordedRanks | None:
        """Read what `save` wrote; None where there is no such file.

        Raises:
            OutputError: it is damaged, or cannot be read.
        """
        try:
            return cls._parsed(mapping(parse_json(read_plain(path))))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror})") from error
        except (KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise OutputError(f"{path}: is damaged ({reason:.80}); remove it") from error

    @classmethod
    def of_run(cls, run: RunRecords) -> RecordedRanks | None:
        """Read the ranks of a run's best validation; None where there are none, or of another.

        Raises:
            OutputError: they are damaged, or cannot be read.
        """
        best, found = run.results.best, cls.load(run.folder.ranks_file)
        if best is None or found is None or (found.step, found.split) != (best.step, best.split):
            return None
        return found

    @classmethod
    def _parsed(cls, stored: dict[str, Any]) -> RecordedRanks:
        images, i2t, t2i, index = (_integers(stored[key], key) for key in _ARRAYS)
        if len(images) != len(i2t) or len(t2i) != len(index) or not len(index):
            raise ValueError("the numbers of queries and of ranks differ")
        if not np.array_equal(np.unique(index), images) or images.min() < 0:
            raise ValueError("image_queries are not the images of the captions")
        if min(i2t.min(), t2i.min()) < 1:
            raise ValueError("a rank is below 1")
        ranks = QueryRanks(*map(torch.from_numpy, (images, i2t, t2i)))
        step, split, shards = stored["step"], stored["split"], stored["shards"]
        if type(step) is not int or not isinstance(split, str) or not isinstance(shards, str):
            raise ValueError("step, split or shards is of another kind")
        return cls(step, split, shards, ranks, index)


def _integers(values: Any, key: str) -> NDArray[np.int64]:
    array = np.array(values)
    if array.ndim != 1 or array.dtype != np.int64:
        raise ValueError(f"{key} is no list of integers")
    return array
