"""Several datasets under one manifest: their shards are linked or copied under new names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vse_shards.checks import refuse_nested
from vse_shards.claim import claim, refuse_foreign
from vse_shards.contents import Contents, Stored, samples
from vse_shards.errors import DatasetError, OutputError, SourceError
from vse_shards.manifest import REJECTS_NAME, Manifest, ShardRecord, Split
from vse_shards.notes import shown
from vse_shards.options import Summary
from vse_shards.output import OutputFolder
from vse_shards.plain_files import read_plain
from vse_shards.progress import Progress, say
from vse_shards.seal import Gathered, finish, report_duplicates
from vse_shards.shard import Outcome, read_outcome, record_name
from vse_shards.storage import is_url
from vse_shards.threshold import Rejects
from vse_shards.writer import ShardWriter


def merge(
    folders: Sequence[Path], out: Path, *, prefix_ids: bool = False, allow_leaks: bool = False
) -> Summary:
    """Join datasets: splits of one name become one split, in the order of the datasets.

    Args:
        folders: folders of the datasets, at least two.
        out: folder to write.
        prefix_ids: put the name of its dataset before each id; the shards are then written anew.
        allow_leaks: accept an image that is in two splits.

    Raises:
        DatasetError: a folder is no dataset, or is damaged.
        SourceError: an id is in two datasets, or an image in two splits.
        OutputError: the folder cannot be written, or contains something else.
    """
    _refuse_folders(folders, out)
    manifests = [Manifest.load(folder) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        manifest.check(folder)
        _check_records(folder, manifest)
    names = _names(folders)
    recorded = _recorded(names, manifests, prefix_ids)
    target = OutputFolder(str(out))
    with target.opened(), target.scratch("ids") as ids_path, contextlib.ExitStack() as stack:
        refuse_foreign(target)
        claim(target, recorded, overwrite=False)
        if not prefix_ids:
            contents = Contents(ids_path)
            stack.callback(contents.close)
            for folder, manifest in zip(folders, manifests, strict=True):
                contents.add(folder, manifest)
            _check_ids(contents)
        gathered = Gathered()
        with Progress("merging", sum(map(_count, manifests)), "shards") as progress:
            for folder, name, manifest in zip(folders, names, manifests, strict=True):
                prefix = f"{name}/" if prefix_ids else ""
                for split, stem, shard in _new_names(gathered, manifest):
                    outcome = _bring(folder, shard, target, stem, prefix)
                    gathered.add(split, stem, outcome)
                    progress.update(len(gathered.files) // 3)
        rejects = _join_rejects(folders, manifests, target)
        duplicates = report_duplicates(target, gathered.digests, allow_leaks)
        merged = gathered.manifest(rejects, recorded["build"], recorded["source"])
        columns = any(manifest.in_columns for manifest in manifests)
        changed = finish(target, gathered, merged, columns=columns)
    return replace(gathered.summary(merged), duplicates=duplicates, changed=changed)


def _check_records(folder: Path, manifest: Manifest) -> None:
    """Read all records: a dataset that cannot be merged is refused before anything is written.

    Raises:
        DatasetError: a record is damaged.
    """
    for split in manifest.splits.values():
        for shard in split.shards:
            read_outcome(folder, shard.stem, shard.samples)


def _refuse_folders(folders: Sequence[Path], out: Path) -> None:
    for folder in (*folders, out):
        if is_url(str(folder)):
            raise OutputError(f"{folder}: merge works on folders of this machine; copy it here")
    if len({os.path.realpath(folder) for folder in folders}) < max(2, len(folders)):
        raise SourceError(
            f"{', '.join(map(str, folders))}: merge takes two or more datasets, each once"
        )
    for folder in folders:
        refuse_nested(str(folder), str(out))


def _names(folders: Sequence[Path]) -> list[str]:
    """Return a name of each dataset: of its folder, numbered where two are the same."""
    names = [Path(os.path.realpath(folder)).name for folder in folders]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    return [
        f"{name}-{number}" if name in repeated else name for number, name in enumerate(names, 1)
    ]


def _recorded(names: list[str], manifests: list[Manifest], prefix_ids: bool) -> dict[str, Any]:
    first = dict(manifests[0].build)
    first.pop("carve", None)
    return {
        "build": {**first, "splits": None, **({"prefix_ids": True} if prefix_ids else {})},
        "source": {
            "kind": "merge",
            "merged": [
                {"name": name, "fingerprint": manifest.fingerprint, "build": dict(manifest.build)}
                for name, manifest in zip(names, manifests, strict=True)
            ],
        },
    }


def _count(manifest: Manifest) -> int:
    return sum(len(split.shards) for split in manifest.splits.values())


def _check_ids(contents: Contents) -> None:
    """Refuse an id of two datasets.

    Raises:
        SourceError: with both places.
    """
    clash = contents.id_clash()
    if clash is not None:
        first, second = clash
        same = first.digest == second.digest != ""
        raise SourceError(
            f"image_id {shown(str(first.description['image_id']))} is in {first.place()} and in "
            f"{second.place()}{', the same picture' if same else ''}; keep both with --prefix-ids"
        )
    twice = contents.caption_id_clash()
    if twice is not None:
        places = [one.place() for one in twice[1] if isinstance(one, Stored)]
        raise SourceError(
            f"caption id {shown(str(twice[0]))} stands twice: in {' and in '.join(places)}; keep "
            "both with --prefix-ids"
        )


def _new_names(gathered: Gathered, manifest: Manifest) -> Iterator[tuple[str, str, ShardRecord]]:
    """Yield the split, new stem and record of each shard of a dataset."""
    for split, content in manifest.splits.items():
        start = len(gathered.shards.get(split, []))
        for number, shard in enumerate(content.shards, start):
            yield split, f"{split}-{number:06d}", shard


def _bring(
    folder: Path, shard: ShardRecord, target: OutputFolder, stem: str, prefix: str
) -> Outcome:
    """Link, copy or write anew one shard under a new name, unless it is there."""
    old = read_outcome(folder, shard.stem, shard.samples)
    fingerprint = hashlib.sha256(f"{prefix} {shard.sha256} {old.fingerprint}".encode()).hexdigest()
    there = target.read(record_name(stem))
    if there is not None:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            done = Outcome.loads(there)
            if done.fingerprint == fingerprint and _is_whole(target, done.shard):
                return done
    target.remove(record_name(stem))  # first: a kill below must not leave a record of other bytes
    if prefix:
        record = _rewrite(folder, shard, target, stem, prefix)
    else:
        record = replace(shard, name=f"{stem}.tar")
        for old_name, new_name in (
            (shard.index_name, record.index_name),
            (shard.name, record.name),
        ):
            _link(folder / old_name, Path(target.path) / new_name)
    outcome = replace(old, fingerprint=fingerprint, shard=record, problems=())
    target.write(record_name(stem), outcome.dumps().encode())
    return outcome


def _is_whole(target: OutputFolder, shard: ShardRecord | None) -> bool:
    return (
        shard is not None
        and target.sha256(shard.index_name) == shard.index_sha256
        and target.sha256(shard.name) == shard.sha256
    )


def _link(source: Path, target: Path) -> None:
    """Link a file, or copy it where links are not possible, under a name that appears at once."""
    temporary = target.with_name(f".{target.name}.vse-tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        try:
            shutil.copyfile(source, temporary)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(
                f"{target}: cannot be written: {error.strerror or error}; make room, then run the "
                "same command again: finished shards are kept"
            ) from error
    os.replace(temporary, target)


def _rewrite(
    folder: Path, shard: ShardRecord, target: OutputFolder, stem: str, prefix: str
) -> ShardRecord:
    """Write a shard with other ids: all other bytes of its samples stay."""
    part = Manifest({"": Split((shard,))}, 0, "", {}, {})
    with target.writing(f"{stem}.tar") as file:
        writer = ShardWriter(file)
        for stored in samples(folder, part):
            described = dict(stored.description)
            described["image_id"] = f"{prefix}{described['image_id']}"
            described["captions"] = [
                {**caption, "id": f"{prefix}{caption['id']}"} for caption in described["captions"]
            ]
            members = {
                one: stored.member(one) or b""
                for one in stored.places
                if stored.places[one][1] >= 0
            }
            members["json"] = json.dumps(described, ensure_ascii=False).encode()
            try:
                writer.add(stored.key, members)
            except ValueError as error:
                raise DatasetError(
                    f"{folder}/{shard.index_name}: {str(error)[:200]}; build the dataset again"
                ) from None
        written = writer.finish()
        index = written.index.encode()
        target.write(f"{stem}.idx", index)
    return replace(
        shard,
        name=f"{stem}.tar",
        bytes=written.bytes,
        sha256=written.sha256,
        index_sha256=hashlib.sha256(index).hexdigest(),
    )


def _join_rejects(
    folders: Sequence[Path], manifests: Sequence[Manifest], target: OutputFolder
) -> Rejects:
    say("joining rejects")
    with target.writing(REJECTS_NAME) as file:
        rejects = Rejects(file)
        for folder, manifest in zip(folders, manifests, strict=True):
            path = folder / REJECTS_NAME
            try:
                data = read_plain(path, None)
            except OSError as error:
                raise DatasetError(
                    f"{path}: cannot be read: {error.strerror}; restore it, or build the dataset "
                    "again"
                ) from error
            rejects.keep(manifest.reject_lines(data, str(path)))
    return rejects
