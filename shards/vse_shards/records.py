"""The shards of a dataset as its manifest records them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SAMPLES = 10_000_000  # of a shard


@dataclass(frozen=True)
class ShardRecord:
    """Size, digests and captions of one shard.

    Attributes:
        name: file name of the tar; its index has the same stem and the suffix ``.idx``.
        samples: images (or region sets) in the tar.
        pairs: captions in the tar.
        bytes: size of the tar.
        sha256: digest of the tar.
        index_sha256: digest of the index.
        captions: run-length code of the captions per sample, in order: ``(captions, run_length)``.
    """

    name: str
    samples: int
    pairs: int
    bytes: int
    sha256: str
    index_sha256: str
    captions: tuple[tuple[int, int], ...]

    @property
    def stem(self) -> str:
        """File name of the tar without its suffix."""
        return self.name.removesuffix(".tar")

    @property
    def index_name(self) -> str:
        """File name of the index."""
        return f"{self.stem}.idx"

    def captions_per_sample(self) -> NDArray[np.int64]:
        """Return the number of captions of each sample, (samples,) int64."""
        code = np.asarray(self.captions, np.int64).reshape(-1, 2)
        return np.repeat(code[:, 0], code[:, 1])

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        values = {field.name: getattr(self, field.name) for field in fields(ShardRecord)}
        return {**values, "captions": [list(run) for run in self.captions]}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> ShardRecord:
        """Read a record.

        Raises:
            KeyError, TypeError, ValueError: the entry is malformed or inconsistent.
        """
        record = cls(
            name=typed(entry, "name", str),
            samples=number(entry, "samples"),
            pairs=number(entry, "pairs"),
            bytes=number(entry, "bytes"),
            sha256=typed(entry, "sha256", str),
            index_sha256=typed(entry, "index_sha256", str),
            captions=tuple((int(count), int(run)) for count, run in entry["captions"]),
        )
        record.check()
        return record

    def check(self) -> None:
        """Refuse what no build writes.

        Raises:
            ValueError: the name is no file name of a tar, or the numbers contradict each other.
        """
        name = self.name
        if not name.endswith(".tar") or "/" in name or not name.isprintable() or len(name) > 255:
            raise ValueError(f"shard name {name[:80]!r} is not the file name of a tar")
        if self.samples > MAX_SAMPLES or min(self.captions, default=(0,))[0] < 0:
            raise ValueError(
                f"{name}: has {self.samples:,} samples, limit {MAX_SAMPLES:,}, or a negative "
                "number of captions"
            )
        if any(run < 0 for _, run in self.captions):
            raise ValueError(f"{name}: a number of samples is negative")
        if sum(run for _, run in self.captions) != self.samples:
            raise ValueError(f"{name}: the caption counts do not cover its samples")
        if sum(count * run for count, run in self.captions) != self.pairs:
            raise ValueError(f"{name}: the caption counts do not add up to its pairs")


@dataclass(frozen=True)
class Split:
    """The shards of one split, in order."""

    shards: Sequence[ShardRecord]

    @property
    def images(self) -> int:
        """Number of images (samples)."""
        return sum(shard.samples for shard in self.shards)

    @property
    def pairs(self) -> int:
        """Number of (image, caption) pairs."""
        return sum(shard.pairs for shard in self.shards)

    def files(self) -> Iterator[tuple[str, int]]:
        """Yield name and size in bytes of each tar."""
        return ((shard.name, shard.bytes) for shard in self.shards)

    def samples(self) -> NDArray[np.int64]:
        """Return the images of each shard, (shards,) int64."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    def digests(self) -> list[str]:
        """Return the sha256 of each tar."""
        return [shard.sha256 for shard in self.shards]

    def captions_per_sample(self) -> NDArray[np.integer]:
        """Return the captions of each image, (images,) of the smallest integer type."""
        most = max((count for shard in self.shards for count, _ in shard.captions), default=0)
        kind = np.min_scalar_type(most)  # a byte an image, as a rule
        parts = [shard.captions_per_sample().astype(kind) for shard in self.shards]
        return np.concatenate(parts) if parts else np.zeros(0, kind)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return {
            "images": self.images,
            "pairs": self.pairs,
            "shards": [shard.to_dict() for shard in self.shards],
        }


def run_length_code(counts: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return ``((value, run_length), ...)`` of a sequence."""
    values = np.asarray(counts if isinstance(counts, np.ndarray) else list(counts), np.int64)
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    if not len(values):
        return ()
    lengths = np.diff(ends, prepend=-1)
    return tuple(zip(values[ends].tolist(), lengths.tolist(), strict=True))


def number(entry: Mapping[str, Any], key: str) -> int:
    """Return a number of an entry, from 0 to 2**53 without it.

    Raises:
        KeyError, TypeError, ValueError: it is not there, of another type, or beyond that.
    """
    value: int = typed(entry, key, int)
    if not 0 <= value < 1 << 53:
        raise ValueError(f"{key} is {str(value)[:20]}, not between 0 and {1 << 53:,}")
    return value


def typed(entry: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return a value of an entry.

    Raises:
        KeyError, TypeError: it is not there, or of another type.
    """
    value = entry[key]
    if type(value) is not kind:  # not isinstance: True is an int
        raise TypeError(f"{key} is {value!r:.80}, not {kind.__name__}")
    return value
