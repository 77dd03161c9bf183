"""Manifest of a dataset folder: its shards, with the digests that prove it complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vse_shards import recorded, storage
from vse_shards.errors import DatasetError
from vse_shards.index import Index, parse_index
from vse_shards.json_text import parse_json
from vse_shards.masking import masked
from vse_shards.notes import shown
from vse_shards.plain_files import read_plain

FILE_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"
FORMAT = "vse-shards"
VERSION = 1
_MAX_SAMPLES = 10_000_000  # of a shard
_MAX_BYTES = 1 << 28  # of a manifest: 256 MB list about 100,000 shards
_REMEDY = "build the dataset again, or copy the file again"


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
    def index_name(self) -> str:
        """File name of the index."""
        return self.name.removesuffix(".tar") + ".idx"

    def captions_per_sample(self) -> NDArray[np.int64]:
        """Return the number of captions of each sample, (samples,) int64."""
        code = np.asarray(self.captions, np.int64).reshape(-1, 2)
        return np.repeat(code[:, 0], code[:, 1])

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return {**self.__dict__, "captions": [list(run) for run in self.captions]}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> ShardRecord:
        """Read a record.

        Raises:
            KeyError, TypeError, ValueError: the entry is malformed or inconsistent.
        """
        record = cls(
            name=_typed(entry, "name", str),
            samples=_number(entry, "samples"),
            pairs=_number(entry, "pairs"),
            bytes=_number(entry, "bytes"),
            sha256=_typed(entry, "sha256", str),
            index_sha256=_typed(entry, "index_sha256", str),
            captions=tuple((int(count), int(run)) for count, run in entry["captions"]),
        )
        name = record.name
        if not name.endswith(".tar") or "/" in name or not name.isprintable() or len(name) > 255:
            raise ValueError(f"shard name {name[:80]!r} is not the file name of a tar")
        if record.samples > _MAX_SAMPLES or min(record.captions, default=(0,))[0] < 0:
            raise ValueError(
                f"{name}: has {record.samples:,} samples, limit {_MAX_SAMPLES:,}, or a negative "
                "number of captions"
            )
        if any(run < 0 for _, run in record.captions):
            raise ValueError(f"{name}: a number of samples is negative")
        if sum(run for _, run in record.captions) != record.samples:
            raise ValueError(f"{record.name}: the caption counts do not cover its samples")
        if sum(count * run for count, run in record.captions) != record.pairs:
            raise ValueError(f"{record.name}: the caption counts do not add up to its pairs")
        return record


@dataclass(frozen=True)
class Split:
    """The shards of one split, in order."""

    shards: tuple[ShardRecord, ...]

    @property
    def images(self) -> int:
        """Number of images (samples)."""
        return sum(shard.samples for shard in self.shards)

    @property
    def pairs(self) -> int:
        """Number of (image, caption) pairs."""
        return sum(shard.pairs for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return {
            "images": self.images,
            "pairs": self.pairs,
            "shards": [shard.to_dict() for shard in self.shards],
        }


@dataclass(frozen=True)
class Manifest:
    """Contents of a dataset folder.

    Attributes:
        splits: splits by name.
        rejects: number of lines in ``rejects.jsonl``.
        rejects_sha256: digest of ``rejects.jsonl``.
        build: options of the build that determine its files.
        source: kind, number of rows and digest of the source.
        fingerprint: sha256 over all of the above.
    """

    splits: Mapping[str, Split]
    rejects: int
    rejects_sha256: str
    build: Mapping[str, Any]
    source: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Digest of the whole manifest, and through its digests of every byte of the dataset."""
        return hashlib.sha256(_dump(self._content()).encode()).hexdigest()

    def dumps(self) -> str:
        """Return the text of ``manifest.json``; the same content always gives the same text."""
        return _dump({**self._content(), "fingerprint": self.fingerprint})

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "splits": {name: split.to_dict() for name, split in self.splits.items()},
            "rejects": self.rejects,
            "rejects_sha256": self.rejects_sha256,
            "build": dict(self.build),
            "source": dict(self.source),
        }

    @classmethod
    def load(cls, folder: Path | str) -> Manifest:
        """Read the manifest of ``folder``, or of its URL.

        Raises:
            DatasetError: there is no such folder or no manifest in it, or the manifest is not
                JSON, of an unknown version, malformed, or was changed after the build.
        """
        if storage.is_url(str(folder)):
            return cls._load_remote(f"{str(folder).rstrip('/')}/{FILE_NAME}")
        path = Path(folder) / FILE_NAME
        try:
            text = read_plain(path, _MAX_BYTES).decode()
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetError(_why_missing(Path(folder))) from None
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path}: cannot be read: {error}") from error
        return cls.loads(text, path)

    @classmethod
    def _load_remote(cls, url: str) -> Manifest:
        try:
            text = storage.read_limited(url, _MAX_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise DatasetError(
                f"{masked(url)}: cannot be read: {reason}; check the address"
            ) from error
        return cls.loads(text, masked(url))

    @classmethod
    def loads(cls, text: str, path: Path | str) -> Manifest:
        """Read the text of a manifest; ``path`` is named in errors.

        Raises:
            DatasetError: as for `load`.
        """
        try:
            content = parse_json(text)
        except ValueError as error:
            raise DatasetError(f"{path}: not JSON: {error}; build the dataset again") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DatasetError(f"{path}: not a manifest of {FORMAT}; point to a folder it built")
        if content.get("version") != VERSION:
            raise DatasetError(
                f"{path}: has version {content.get('version')!r}, this program reads {VERSION}; "
                "build the dataset again, or update"
            )
        try:
            manifest = cls(
                splits={
                    name: Split(tuple(map(ShardRecord.from_dict, split["shards"])))
                    for name, split in content["splits"].items()
                },
                rejects=_number(content, "rejects"),
                rejects_sha256=_typed(content, "rejects_sha256", str),
                build=recorded.checked(content["build"], recorded.BUILD, "build"),
                source=recorded.checked(content["source"], recorded.SOURCE, "source"),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise DatasetError(f"{path}: malformed: {reason}; build the dataset again") from None
        for name in manifest.splits:
            if not name.isprintable() or len(name) > 255:
                raise DatasetError(
                    f"{path}: malformed: {shown(name)!r} is no name of a split; build the dataset "
                    "again"
                )
        if content.get("fingerprint") != manifest.fingerprint:
            raise DatasetError(
                f"{path}: was changed after the build: its fingerprint is "
                f"{str(content.get('fingerprint'))[:12]}, its content gives "
                f"{manifest.fingerprint[:12]}; build the dataset again"
            )
        return manifest

    def reject_lines(self, data: bytes, path: str) -> list[str]:
        """Return the lines of ``rejects.jsonl``; more than the manifest counts are left out.

        Args:
            data: content of the file.
            path: named in errors.

        Raises:
            DatasetError: it was changed after the build, or is not UTF-8.
        """
        lines = data.splitlines(keepends=True)[: self.rejects]
        if hashlib.sha256(b"".join(lines)).hexdigest() != self.rejects_sha256:
            raise DatasetError(
                f"{path}: was changed after the build (its sha256 differs); restore it, or build "
                "the dataset again"
            )
        try:
            return [line.decode() for line in lines]
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path}: cannot be read: {error}; {_REMEDY}") from None

    def check(self, folder: Path) -> None:
        """Check the sizes of all tars, and the digests and counts of all indices.

        No tar is read; ``vse-shards verify`` reads them.

        Raises:
            DatasetError: naming the first file that disagrees, and both values.
        """
        for problem in self.disagreements(Path(folder)):
            raise DatasetError(problem)

    def check_sizes(self, folder: Path, split: str) -> None:
        """Check the sizes of the tars of one split, which reads no file.

        Raises:
            DatasetError: naming the first file that disagrees, and both values.
        """
        for shard in self.split(split, folder).shards:
            for problem in _wrong_size(folder, shard):
                raise DatasetError(problem)

    def disagreements(self, folder: Path) -> Iterable[str]:
        """Yield one line for each tar or index that disagrees with the manifest."""
        for split in self.splits.values():
            for shard in split.shards:
                yield from _wrong_size(folder, shard)
                try:
                    checked_index(folder, shard)
                except DatasetError as error:
                    yield str(error)

    def split(self, name: str, folder: Path | str) -> Split:
        """Return the split ``name``; ``folder`` is named in errors.

        Raises:
            DatasetError: there is no such split; the message lists the splits.
        """
        if name not in self.splits:
            raise DatasetError(
                f"{folder}: has no split {name!r}; it has {', '.join(self.splits) or 'none'}"
            )
        return self.splits[name]


def run_length_code(counts: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return ``((value, run_length), ...)`` of a sequence."""
    runs: list[list[int]] = []
    for count in counts:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return tuple((count, length) for count, length in runs)


def checked_index(folder: Path, shard: ShardRecord) -> Index:
    """Read the index of a shard, compared with the manifest.

    Raises:
        DatasetError: it is not there, is another, or does not have the shard's samples.
    """
    path = folder / shard.index_name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; {_REMEDY}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != shard.index_sha256:
        raise DatasetError(
            f"{path}: has sha256 {digest[:12]}, the manifest says {shard.index_sha256[:12]}; "
            f"{_REMEDY}"
        )
    return shard_index(data, shard, path)


def shard_index(data: bytes, shard: ShardRecord, path: Path | str) -> Index:
    """Read the index of a shard from bytes whose digest is right; ``path`` is named in errors.

    Raises:
        DatasetError: it is no index, or does not have the shard's samples within the shard.
    """
    index = parse_index(data, path)
    if len(index) != shard.samples:
        raise DatasetError(
            f"{path}: has {len(index)} samples, the manifest says {shard.samples}; {_REMEDY}"
        )
    if index.end > shard.bytes:
        raise DatasetError(
            f"{path}: has a member that ends at byte {index.end:,}, and {shard.name} has "
            f"{shard.bytes:,} bytes; {_REMEDY}"
        )
    return index


def _wrong_size(folder: Path, shard: ShardRecord) -> Iterable[str]:
    tar = folder / shard.name
    try:
        size = tar.stat().st_size
        if size != shard.bytes:
            yield f"{tar}: has {size:,} bytes, the manifest says {shard.bytes:,}; {_REMEDY}"
    except OSError as error:
        yield f"{tar}: {error.strerror}; {_REMEDY}"


def _why_missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder; build the dataset first with vse-shards build"
    return (
        f"{folder}: has no {FILE_NAME}; it is not a dataset, or its build is incomplete: run the "
        "same vse-shards build again"
    )


def _number(entry: Mapping[str, Any], key: str) -> int:
    value: int = _typed(entry, key, int)
    if not 0 <= value < 1 << 53:
        raise ValueError(f"{key} is {str(value)[:20]}, not between 0 and {1 << 53:,}")
    return value


def _typed(entry: Mapping[str, Any], key: str, kind: type) -> Any:
    value = entry[key]
    if type(value) is not kind:  # not isinstance: True is an int
        raise TypeError(f"{key} is {value!r:.80}, not {kind.__name__}")
    return value


def _dump(content: Mapping[str, Any]) -> str:
    # The fingerprint is the digest of this text: any change of layout changes all fingerprints.
    return json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
