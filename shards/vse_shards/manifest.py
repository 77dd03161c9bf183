"""Manifest of a dataset folder: its shards, with the digests that prove it complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vse_shards import recorded, storage
from vse_shards.columns import (
    MEND_COLUMN,
    ColumnFile,
    ColumnSplit,
    Opener,
    TabledRecord,
    open_column,
)
from vse_shards.errors import DatasetError
from vse_shards.index import Index, parse_index
from vse_shards.json_text import parse_json
from vse_shards.masking import masked
from vse_shards.notes import shown
from vse_shards.npy import parse_npy
from vse_shards.plain_files import MOST_BYTES, read_plain
from vse_shards.records import ShardRecord as ShardRecord
from vse_shards.records import Split as Split
from vse_shards.records import number, typed
from vse_shards.records import run_length_code as run_length_code
from vse_shards.table import MEND, parse_table

FILE_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"
FORMAT = "vse-shards"
VERSION = 1
COLUMNS_VERSION = 2  # whose shards are in columns
_MAX_BYTES = MOST_BYTES  # of a manifest: 256 MB list about 100,000 shards
_REMEDY = "build the dataset again, or copy the file again"


@dataclass(frozen=True)
class Manifest:
    """Contents of a dataset folder.

    Attributes:
        splits: splits by name.
        rejects: number of lines in ``rejects.jsonl``.
        rejects_sha256: digest of ``rejects.jsonl``.
        build: options of the build that determine its files.
        source: kind, number of rows and digest of the source.
        stated: the fingerprint as a manifest of version 2 states it; "" for one of version 1.
        fingerprint: sha256 over all of the above, the same in both versions.
    """

    splits: Mapping[str, Split]
    rejects: int
    rejects_sha256: str
    build: Mapping[str, Any]
    source: Mapping[str, Any]
    stated: str = ""

    @property
    def fingerprint(self) -> str:
        """Digest of the whole manifest, and through its digests of every byte of the dataset.

        That of version 2 is taken as stated: it stands under the seal, which is compared.
        """
        return self.stated or self.computed_fingerprint()

    @property
    def in_columns(self) -> bool:
        """Whether the shards are in columns: version 2 of the format."""
        return bool(self.stated)

    def computed_fingerprint(self) -> str:
        """Return the fingerprint, from every record."""
        digest = hashlib.sha256()
        for piece in self._pieces({}):
            digest.update(piece.encode())
        return digest.hexdigest()

    def dumps(self) -> str:
        """Return the text of ``manifest.json``; the same content always gives the same text."""
        if not self.stated:
            return "".join(self._pieces({"fingerprint": self.fingerprint}))
        stated = {
            name: split.stated()
            for name, split in self.splits.items()
            if isinstance(split, ColumnSplit)
        }
        content = {**self._content(stated, COLUMNS_VERSION), "fingerprint": self.stated}
        return _dump({**content, "seal": _seal(content)})

    def _pieces(self, more: dict[str, Any]) -> Iterator[str]:
        """Yield the text of a manifest of version 1, shard by shard: it may have gigabytes."""
        marks = {name: uuid.uuid4().hex for name, split in self.splits.items() if split.shards}
        splits = {
            name: {"images": split.images, "pairs": split.pairs, "shards": [marks.get(name)]}
            if name in marks
            else split.to_dict()
            for name, split in self.splits.items()
        }
        text = _dump({**self._content(splits, VERSION), **more})
        for name in sorted(marks):  # as in the text
            before, _, text = text.partition(f'"{marks[name]}"')
            for shard in self.splits[name].shards:
                yield before + _dump(shard.to_dict())[:-1].replace("\n", "\n    ")
                before = ",\n    "
        yield text

    def _content(self, splits: dict[str, Any], version: int) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": version,
            "splits": splits,
            "rejects": self.rejects,
            "rejects_sha256": self.rejects_sha256,
            "build": dict(self.build),
            "source": dict(self.source),
        }

    @classmethod
    def load(
        cls, folder: Path | str, opener: Opener | None = None, *, most: int | None = None
    ) -> Manifest:
        """Read the manifest of ``folder``, or of its URL.

        Args:
            folder: folder of the dataset, or its URL.
            opener: opens the columns of a manifest of version 2; None: those of the folder.
            most: bytes that the manifest may have; None: what training opens.

        Raises:
            DatasetError: there is no such folder or no manifest in it, or the manifest is not
                JSON, of an unknown version, malformed, or was changed after the build.
        """
        if storage.is_url(str(folder)):
            url = str(folder).rstrip("/")
            return cls._load_remote(f"{url}/{FILE_NAME}", opener or column_opener(url))
        path = Path(folder) / FILE_NAME
        try:
            text = read_plain(path, most or _MAX_BYTES).decode()
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetError(_why_missing(Path(folder))) from None
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path}: cannot be read: {error}{_remedy(path)}") from error
        return cls.loads(text, path, opener)

    @classmethod
    def _load_remote(cls, url: str, opener: Opener) -> Manifest:
        try:
            text = storage.read_limited(url, _MAX_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise DatasetError(
                f"{masked(url)}: cannot be read: {reason}; check the address"
            ) from error
        return cls.loads(text, masked(url), opener)

    @classmethod
    def loads(cls, text: str, path: Path | str, opener: Opener | None = None) -> Manifest:
        """Read the text of a manifest.

        Args:
            text: of the file.
            path: of the file, named in errors.
            opener: opens the columns of a manifest of version 2; None: those beside ``path``.

        Raises:
            DatasetError: as for `load`.
        """
        try:
            content = parse_json(text)
        except ValueError as error:
            raise DatasetError(f"{path}: not JSON: {error}; build the dataset again") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DatasetError(f"{path}: not a manifest of {FORMAT}; point to a folder it built")
        version = content.get("version")
        if version not in (VERSION, COLUMNS_VERSION):
            raise DatasetError(
                f"{path}: has version {version!r:.80}, this program reads {VERSION} and "
                f"{COLUMNS_VERSION}; build the dataset again, or update"
            )
        try:
            manifest = cls(
                splits=_splits(content, opener or column_opener(os.path.dirname(path))),
                rejects=number(content, "rejects"),
                rejects_sha256=typed(content, "rejects_sha256", str),
                build=recorded.checked(content["build"], recorded.BUILD, "build"),
                source=recorded.checked(content["source"], recorded.SOURCE, "source"),
                stated=typed(content, "fingerprint", str) if version == COLUMNS_VERSION else "",
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
        manifest._check_digest(content, path)
        return manifest

    def _check_digest(self, content: dict[str, Any], path: Path | str) -> None:
        """Compare the digest in the text of a manifest: its seal, or in version 1 its fingerprint.

        Raises:
            DatasetError: it was changed after the build.
        """
        name = "seal" if self.in_columns else "fingerprint"
        stated = content.pop(name, None)
        found = _seal(content) if self.in_columns else self.fingerprint
        if stated != found:
            raise DatasetError(
                f"{path}: was changed after the build: its {name} is {str(stated)[:12]}, its "
                f"content gives {found[:12]}; build the dataset again"
            )

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
        for name, size in self.split(split, folder).files():
            for problem in _wrong_size(folder, name, size):
                raise DatasetError(problem)

    def disagreements(self, folder: Path) -> Iterable[str]:
        """Yield one line for each tar or index of either kind that disagrees with the manifest."""
        for split in self.splits.values():
            for shard in split.shards:
                yield from _wrong_size(folder, shard.name, shard.bytes)
                try:
                    checked_index(folder, shard)
                    if isinstance(shard, TabledRecord):
                        checked_table(folder, shard)
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


def checked_index(folder: Path, shard: ShardRecord) -> Index:
    """Read the index of a shard, compared with the manifest.

    Raises:
        DatasetError: it is not there, is another, or does not have the shard's samples.
    """
    path = folder / shard.index_name
    try:
        data = read_plain(path, None)
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


def checked_table(folder: Path, shard: TabledRecord, *, again: bool = False) -> Index:
    """Read the binary index of a shard, compared with the manifest.

    Args:
        folder: folder of the shard.
        shard: record of the shard.
        again: whether its digest was compared before.

    Raises:
        DatasetError: it is not there, is another, or does not have the shard's samples.
    """
    path = folder / shard.table_name
    try:
        data = read_plain(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path}: {reason}; copy the file again, or {MEND}") from error
    return shard_table(
        data, shard, path, again=again, keys=lambda: checked_index(folder, shard).keys
    )


def shard_table(
    data: bytes,
    shard: TabledRecord,
    path: Path | str,
    *,
    keys: Callable[[], Sequence[str]],
    again: bool = False,
) -> Index:
    """Read the binary index of a shard from the bytes of its file.

    Args:
        data: bytes of the file.
        shard: record of the shard.
        path: named in errors.
        keys: reads the keys of the samples.
        again: whether its digest was compared before.

    Raises:
        DatasetError: it is another file, or none of this shard.
    """
    sha256 = None if again else shard.table.sha256
    samples, size = shard.samples, shard.bytes
    return parse_table(data, path, sha256=sha256, samples=samples, size=size, keys=keys)


def _wrong_size(folder: Path, name: str, expected: int) -> Iterable[str]:
    tar = f"{folder}/{name}"
    try:
        size = os.stat(tar).st_size
        if size != expected:
            yield f"{tar}: has {size:,} bytes, the manifest says {expected:,}; {_REMEDY}"
    except OSError as error:
        yield f"{tar}: {error.strerror}; {_REMEDY}"


def _splits(content: Mapping[str, Any], opener: Opener) -> dict[str, Split]:
    """Return the splits of a manifest of any version.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: an entry is malformed.
    """
    entries = content["splits"].items()
    if content["version"] == COLUMNS_VERSION:
        return {name: ColumnSplit(name, entry, opener) for name, entry in entries}
    return {
        name: Split(tuple(map(ShardRecord.from_dict, entry["shards"]))) for name, entry in entries
    }


def column_opener(folder: str) -> Opener:
    """Return what opens the columns of a folder, or of its URL: those into memory."""
    return partial(_remote_column if storage.is_url(folder) else _local_column, folder)


def _local_column(folder: str, column: ColumnFile) -> NDArray[Any]:
    return open_column(Path(folder) / column.name, column)


def _remote_column(url: str, column: ColumnFile) -> NDArray[Any]:
    path = masked(f"{url}/{column.name}")
    try:
        data = storage.read_limited(f"{url}/{column.name}", column.bytes)
        digest = hashlib.sha256(data).hexdigest()
        if digest != column.sha256:
            raise ValueError(f"has sha256 {digest[:12]}, the manifest says {column.sha256[:12]}")
        return parse_npy(data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DatasetError(f"{path}: cannot be read: {reason}; {MEND_COLUMN}") from error


def _why_missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder; build the dataset first with vse-shards build"
    return (
        f"{folder}: has no {FILE_NAME}; it is not a dataset, or its build is incomplete: run the "
        "same vse-shards build again"
    )


def _remedy(path: Path) -> str:
    """Return the remedy for a list of shards that is too long to be read."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > _MAX_BYTES:
            return "; run vse-shards upgrade, which puts it in columns"
    return ""


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dump(content).encode()).hexdigest()


def _dump(content: Mapping[str, Any]) -> str:
    # The fingerprint is the digest of this text: any change of layout changes all fingerprints.
    return json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
