"""Verification of a dataset folder against its manifest, to the last byte."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vse_shards.card import CARD_NAME, card_problem
from vse_shards.images import Rejected, decode_strictly
from vse_shards.index import Member, format_index
from vse_shards.info import parse_description
from vse_shards.manifest import FILE_NAME, REJECTS_NAME, Manifest, ShardRecord
from vse_shards.output import PLAN_NAME, OutputFolder
from vse_shards.plain_files import open_plain, read_plain
from vse_shards.progress import Progress
from vse_shards.regions import load_regions
from vse_shards.storage import sha256_of
from vse_shards.tabulate import disagreements as column_disagreements

_BLOCK = 512


def verify(folder: Path, *, deep: bool = False) -> list[str]:
    """Check a dataset.

    Args:
        folder: folder of the dataset.
        deep: also decode every image in full and compare it with its description.

    Returns:
        One line per problem; none if the dataset is complete.

    Raises:
        DatasetError: there is no dataset.
    """
    manifest = Manifest.load(folder)
    problems = []
    if read_plain(folder / FILE_NAME) != manifest.dumps().encode():
        problems.append(
            f"{folder / FILE_NAME}: differs from the bytes that were written, with equal content"
        )
    problems += manifest.disagreements(folder)
    problems += column_disagreements(folder, manifest)
    problems += _check_rejects(folder, manifest)
    card = OutputFolder(str(folder)).read(CARD_NAME)
    if problem := card_problem(card, manifest):
        problems.append(f"{folder / CARD_NAME}: {problem}")
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    with Progress("verifying", sum(s.samples for s in shards), "samples") as progress:
        done = 0
        for shard in shards:
            for problem in check_shard(folder, shard, deep=deep):
                if problem not in problems:
                    problems.append(problem)
            done += shard.samples
            progress.update(done, f"{len(problems):,} problems" if problems else "")
    return problems


def check_shard(folder: Path, shard: ShardRecord, *, deep: bool) -> Iterator[str]:
    """Yield the problems of one shard's content; the manifest reports missing files."""
    path = folder / shard.name
    try:
        with open_plain(path) as file:
            digest = sha256_of(file)
            if digest != shard.sha256:
                yield f"{path}: has sha256 {digest[:12]}, the manifest says {shard.sha256[:12]}"
                return  # its content is arbitrary now
            file.seek(0)
            samples = list(walk_tar(file))
            index = read_plain(folder / shard.index_name, None).decode()
            # Compared as text, which also finds extra and moved members.
            if format_index(samples) != index:
                yield f"{folder / shard.index_name}: does not agree with {shard.name}"
                return
            yield from _check_samples(path, file, shard, samples, deep=deep)
    except (FileNotFoundError, UnicodeDecodeError):
        return  # reported by the manifest's own check
    except (OSError, tarfile.TarError) as error:
        yield f"{path}: cannot be read: {error}"


def walk_tar(file: BinaryIO) -> Iterator[list[Member]]:
    """Yield the members of each sample of a tar of regular files, read header by header.

    Raises:
        tarfile.TarError: the file is not such a tar.
    """
    sample: list[Member] = []
    position = 0
    while True:
        header = file.read(_BLOCK)
        if header == bytes(_BLOCK):
            break
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        key, _, extension = info.name.partition(".")
        member = Member(extension, position + _BLOCK, info.size, info.name)
        if sample and sample[0].name.partition(".")[0] != key:
            yield sample
            sample = []
        sample.append(member)
        position += _BLOCK + -(-info.size // _BLOCK) * _BLOCK
        file.seek(position)
    if sample:
        yield sample


def _check_rejects(folder: Path, manifest: Manifest) -> Iterator[str]:
    path = folder / REJECTS_NAME
    try:
        data = read_plain(path, None)
        if (folder / PLAN_NAME).exists():  # an unfinished append may have added lines
            data = b"".join(data.splitlines(keepends=True)[: manifest.rejects])
        digest = hashlib.sha256(data).hexdigest()
    except OSError as error:
        yield f"{path}: {error.strerror}"
        return
    if digest != manifest.rejects_sha256:
        yield (
            f"{path}: has sha256 {digest[:12]}, the manifest says {manifest.rejects_sha256[:12]}"
        )


def _check_samples(
    path: Path, file: BinaryIO, shard: ShardRecord, samples: list[list[Member]], *, deep: bool
) -> Iterator[str]:
    counts = shard.captions_per_sample()
    if len(samples) != shard.samples:
        yield f"{path}: has {len(samples)} samples, the manifest says {shard.samples}"
        return
    for members, count in zip(samples, counts, strict=True):
        data = {m.extension: _read(file, m) for m in members}
        name = f"{path}: {members[0].name.partition('.')[0]}"
        try:
            description = parse_description(data["json"])
            captions = len(description["captions"])
        except (KeyError, ValueError):
            yield f"{name}: has no readable description"
            continue
        if captions != count:
            yield f"{name}: has {captions} captions, the manifest says {count}"
        if deep:
            yield from _check_deep(name, data, description)


def _check_deep(name: str, data: dict[str, bytes], description: dict[str, Any]) -> Iterator[str]:
    """Decode the members of a sample."""
    try:
        if "jpg" in data:
            height, width = decode_strictly(data["jpg"]).shape[:2]
            if (width, height) != (description["width"], description["height"]):
                yield (
                    f"{name}: the image has {width} x {height} pixels, its description says "
                    f"{description['width']} x {description['height']}"
                )
        if "npy" in data:
            load_regions(data["npy"])
    except (Rejected, KeyError, ValueError) as error:
        yield f"{name}: {error}"


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)
