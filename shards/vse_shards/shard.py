"""Conversion of rows to one shard, the work unit of a process."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vse_shards import reach, recorded, storage
from vse_shards.errors import DatasetError, SourceError, StorageError
from vse_shards.images import CheckedImage, ImageOptions, Rejected, check_image
from vse_shards.json_text import parse_json
from vse_shards.manifest import ShardRecord, run_length_code
from vse_shards.output import OutputFolder
from vse_shards.regions import read_regions
from vse_shards.sources import Location, Problem, Row
from vse_shards.writer import ShardWriter

_encode = json.JSONEncoder(ensure_ascii=False).encode
FORMAT_VERSION = 3  # raise it when the same rows and options give other bytes


@dataclass(frozen=True)
class ShardPlan:
    """Name and keys of one shard.

    Attributes:
        stem: file name without suffix.
        first_key: key of the first row; the following rows count up.
    """

    stem: str
    first_key: int


@dataclass(frozen=True)
class Outcome:
    """Result of one shard.

    Attributes:
        fingerprint: digest of its rows and options, see `shard_fingerprint`.
        shard: None if every row was rejected; no tar is written then.
        problems: lines of ``rejects.jsonl``.
        digests: digest of each stored image, "" for a sample without one.
        untouched: number of images stored byte for byte.
        changes: number of images by what was cut, mended or assumed.
    """

    fingerprint: str
    shard: ShardRecord | None
    problems: tuple[str, ...]
    digests: tuple[str, ...]
    untouched: int
    changes: dict[str, int] = field(default_factory=dict)

    def dumps(self) -> str:
        """Return the text of the record stored beside the shard."""
        shard = self.shard and self.shard.to_dict()
        content = {**self.__dict__, "shard": shard}
        if not self.changes:
            del content["changes"]
        return json.dumps(content, sort_keys=True) + "\n"

    @classmethod
    def loads(cls, text: bytes) -> Outcome:
        """Read a record.

        Raises:
            KeyError, TypeError, ValueError: the text is not a record.
        """
        content = recorded.checked(parse_json(text), recorded.SHARD, "record")
        shard = content["shard"] and ShardRecord.from_dict(content["shard"])
        if len(content["digests"]) != (shard.samples if shard else 0):
            raise ValueError(f"has {len(content['digests'])} digests")
        return cls(
            fingerprint=content["fingerprint"],
            shard=shard,
            problems=tuple(content["problems"]),
            digests=tuple(content["digests"]),
            untouched=content["untouched"],
            changes=content.get("changes", {}),
        )


def record_name(stem: str) -> str:
    """Return the file name of the record that marks a shard finished."""
    return f"{stem}.json"


def read_outcome(folder: Path | str, stem: str, samples: int | None = None) -> Outcome:
    """Read the record of a finished shard.

    Args:
        folder: folder or URL of the dataset.
        stem: name of the shard.
        samples: of the shard, where they are known.

    Raises:
        DatasetError: there is none, or it is of another number of samples.
    """
    path = f"{folder}/{record_name(stem)}"
    for _ in range(2):  # a storage may send something else for once
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
            found = Outcome.loads(storage.read_bytes(path))
            if samples in (None, len(found.digests)):
                return found
    raise DatasetError(
        f"{path}: is no record of a shard; copy the file again, or build the dataset again"
    )


def shard_fingerprint(plan: ShardPlan, identities: Iterable[str], options: ImageOptions) -> str:
    """Return the digest of everything that determines a shard's bytes, except image contents.

    Args:
        plan: name and keys.
        identities: identities of the rows, from the store.
        options: conversion of images.
    """
    digest = hashlib.sha256(
        json.dumps([FORMAT_VERSION, plan.first_key, options.recorded()]).encode()
    )
    for identity in identities:
        digest.update(identity.encode())
    return digest.hexdigest()


def finished(out: OutputFolder, plan: ShardPlan, fingerprint: str) -> Outcome | None:
    """Return the outcome of an earlier build if record, index and tar still agree.

    A record that does not agree is removed: a kill must not leave it beside other bytes. Without
    one nothing is: another machine may be about to write it.
    """
    text = out.read(record_name(plan.stem))
    if text is None:
        return None
    outcome = _agreeing(out, text, fingerprint)
    # Another machine may have written it anew while this one compared the tar.
    if outcome is None and out.read(record_name(plan.stem)) == text:
        out.remove(record_name(plan.stem))
    return outcome


def _agreeing(out: OutputFolder, text: bytes, fingerprint: str) -> Outcome | None:
    try:
        outcome = Outcome.loads(text)
    except (KeyError, TypeError, ValueError):
        return None
    if outcome.fingerprint != fingerprint:
        return None
    shard = outcome.shard
    if shard is not None and (
        out.sha256(shard.index_name) != shard.index_sha256 or out.sha256(shard.name) != shard.sha256
    ):
        return None
    return outcome


def make_shard(
    out: OutputFolder,
    plan: ShardPlan,
    rows: list[Row],
    fingerprint: str,
    options: ImageOptions,
    done: Callable[[bool], None],
    *,
    elsewhere: bool = False,
) -> Outcome:
    """Check, convert and write the rows of one shard: index first, then tar, then record.

    Args:
        out: folder to write.
        plan: name and keys.
        rows: rows in the order of the shard.
        fingerprint: fingerprint of the shard.
        options: conversion of images.
        done: called after every row, with True if it was rejected.
        elsewhere: whether another machine read the source, which may see files that this one does
            not.

    Raises:
        OutputError: a file cannot be written.
        StorageError: a storage does not answer, or a file is not on this machine; no sample of the
            shard is lost then.
    """
    problems: list[str] = []
    samples = _samples(plan, rows, options, problems, done, elsewhere)
    first = next(samples, None)
    shard, digests, untouched, changes = None, [], 0, Counter[str]()
    if first is not None:  # no samples, no shard: DALI cannot read an empty tar
        counts: list[int] = []
        with out.writing(f"{plan.stem}.tar") as file:
            writer = ShardWriter(file)
            for sample in itertools.chain([first], samples):
                writer.add(sample.key, sample.members)
                counts.append(sample.captions)
                digests.append(sample.digest)
                untouched += sample.untouched
                changes.update(sample.changes)
            written = writer.finish()
            index = written.index.encode()
            # Within the block: a tar must not appear before its index.
            out.write(f"{plan.stem}.idx", index)
        shard = ShardRecord(
            name=f"{plan.stem}.tar",
            samples=written.samples,
            pairs=sum(counts),
            bytes=written.bytes,
            sha256=written.sha256,
            index_sha256=hashlib.sha256(index).hexdigest(),
            captions=run_length_code(counts),
        )
    outcome = Outcome(
        fingerprint=fingerprint,
        shard=shard,
        problems=tuple(problems),
        digests=tuple(digests),
        untouched=untouched,
        changes=dict(changes),
    )
    out.write(record_name(plan.stem), outcome.dumps().encode())
    return outcome


@dataclass(frozen=True)
class _Sample:
    key: str
    members: dict[str, bytes]
    captions: int
    digest: str
    untouched: bool
    changes: tuple[str, ...]


def _samples(
    plan: ShardPlan,
    rows: list[Row],
    options: ImageOptions,
    problems: list[str],
    done: Callable[[bool], None],
    elsewhere: bool,
) -> Iterator[_Sample]:
    """Yield the samples of usable rows; append the others to ``problems``."""
    for number, row in enumerate(rows):
        try:
            image = None if row.image is None else _checked(row.image, options)
            regions = None if row.regions is None else read_regions(row.regions)
        except Rejected as refusal:
            if elsewhere:
                _check_here(row)
            problems.append(
                Problem(row.name, row.image_id, row.split, refusal.reason, refusal.detail).to_line()
            )
            done(True)
            continue
        except (SourceError, FileNotFoundError):
            if elsewhere:
                _check_here(row)
            raise
        members = {} if image is None else {"jpg": image.data}
        if regions is not None:
            members["npy"] = regions
        members["json"] = _description(row, image)
        yield _Sample(
            key=f"{plan.first_key + number:08d}",
            members=members,
            captions=len(row.captions),
            digest="" if image is None else image.digest,
            untouched=image is not None and image.untouched,
            changes=() if image is None else image.changes,
        )
        done(False)


def _check_here(row: Row) -> None:
    """Tell a damaged file from one that this machine does not see.

    Raises:
        StorageError: the row has a local file that is not there, or that this user may not read.
    """
    needed = {}
    if row.image is not None:
        needed[row.image.path] = row.image.offset + (row.image.size or 0)
    if row.regions is not None:
        needed[row.regions.path] = 0
    for path, least in needed.items():
        if not storage.is_url(path) and (size := storage.file_size(path)) < least:
            raise StorageError(
                f"{reach.shown(path)}: "
                f"{'is not on this machine' if size < 0 else f'has {size:,} bytes here'}, and was "
                "there in full when the plan was made; mount its folder here under the same path, "
                "or run vse-shards plan again if it is gone"
            )
        if not storage.is_url(path) and not os.access(path, os.R_OK):
            raise StorageError(
                f"{reach.shown(path)}: may not be read by this user on this machine; give the user "
                "the right to read it, or take its row out and run vse-shards plan again"
            )


def _description(row: Row, image: CheckedImage | None) -> bytes:
    """Return the JSON member of a sample."""
    captions = [
        {"id": f"{row.image_id}#{n}" if caption.id is None else caption.id, "text": caption.text}
        for n, caption in enumerate(row.captions)
    ]
    content = {
        "image_id": row.image_id,
        "captions": captions,
        "width": image and image.width,
        "height": image and image.height,
    }
    return _encode(content).encode()


def _checked(location: Location, options: ImageOptions) -> CheckedImage:
    """Read and check an image; what a storage sends is refused only if it sends it twice."""
    data = read_image(location)
    try:
        return check_image(data, options)
    except Rejected:
        if not storage.is_url(location.path) or (again := read_image(location)) == data:
            raise
        return check_image(again, options)


def read_image(location: Location) -> bytes:
    """Read the bytes of a row's picture.

    Raises:
        Rejected: the file is not there, or may not be read.
        StorageError: its storage does not answer, which says nothing about the file.
    """
    path = location.path
    try:
        try:
            return storage.read_bytes(path, location.offset, location.size)
        except FileNotFoundError:
            if not storage.is_url(path):
                raise
            # The storage listed it a moment ago.
            return storage.read_bytes(path, location.offset, location.size)
    except (FileNotFoundError, PermissionError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise Rejected("unreadable", reason) from None
    except OSError as error:
        raise StorageError(
            f"{reach.shown(path)}: cannot be read: {error.strerror or error}; this says nothing "
            "about the image: mend the disk or its mount, and run the same command again"
        ) from error
