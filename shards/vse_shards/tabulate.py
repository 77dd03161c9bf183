"""Columns and binary indices of a dataset, written beside its shards: version 2 of the format."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vse_shards.columns import (
    COLUMN_FILE,
    ColumnFile,
    ColumnSplit,
    Table,
    TabledRecord,
    column_name,
    columns_of,
    entry_of,
)
from vse_shards.errors import DatasetError
from vse_shards.index import Index
from vse_shards.json_text import parse_json
from vse_shards.manifest import (
    COLUMNS_VERSION,
    FILE_NAME,
    Manifest,
    ShardRecord,
    Split,
    checked_index,
    column_opener,
    shard_index,
)
from vse_shards.masking import masked
from vse_shards.output import OutputFolder
from vse_shards.progress import Progress
from vse_shards.table import table_name, table_of

MOST_LISTED = 10_000  # shards that the manifest of a build lists one by one


def wants_columns(folder: OutputFolder, manifest: Manifest) -> bool:
    """Return whether a manifest is written in version 2: a long one, or in place of such a one."""
    if sum(len(split.shards) for split in manifest.splits.values()) > MOST_LISTED:
        return True
    with contextlib.suppress(ValueError, AttributeError):
        found: object = parse_json(folder.read(FILE_NAME) or b"{}").get("version")
        return found == COLUMNS_VERSION
    return False


def in_columns(
    folder: OutputFolder, manifest: Manifest, earlier: Manifest | None = None
) -> Manifest:
    """Write columns and binary indices beside the shards, and return the manifest that names them.

    The manifest in the folder stays, and so does what it names: until the one that is returned has
    replaced it, the dataset is as it was.

    Args:
        folder: folder of the shards.
        manifest: of any version.
        earlier: the manifest in the folder; None reads it.

    Raises:
        DatasetError: the index of a shard is not the one that the manifest lists.
        OutputError: a file cannot be written.
    """
    known, opener = _known(folder, earlier), column_opener(folder.path)
    splits: dict[str, Split] = {}
    shards = sum(len(split.shards) for split in manifest.splits.values())
    with Progress("writing binary indices", shards, "shards") as progress:
        done = 0
        for name, split in sorted(manifest.splits.items()):
            tables = []
            for shard in split.shards:
                tables.append(_write_table(folder, shard, known.get(shard.name)))
                done += 1
                progress.update(done)
            columns = columns_of(split, tables)
            for column, data in columns.items():
                file = column_name(name, column, hashlib.sha256(data).hexdigest())
                if folder.read(file) != data:
                    folder.write(file, data)
            splits[name] = ColumnSplit(name, entry_of(split, columns), opener)
    # Not as stated: a manifest of version 2 may be the one to be mended.
    return replace(manifest, splits=splits, stated=manifest.computed_fingerprint())


def remove_columns(folder: OutputFolder, manifest: Manifest, replaced: bytes | None = None) -> None:
    """Remove columns that the folder's manifest does not name.

    Args:
        folder: folder of the dataset.
        manifest: its manifest.
        replaced: text of the manifest before it. Who opened that one may read its columns still;
            they go with the next change.
    """
    kept = {file.name for file in column_files(manifest)}
    if replaced is not None:
        with contextlib.suppress(DatasetError, UnicodeDecodeError):
            before = Manifest.loads(replaced.decode(), folder.path)
            kept |= {file.name for file in column_files(before)}
    for name in folder.names():
        if COLUMN_FILE.fullmatch(name) and name not in kept:
            folder.remove(name)


def column_files(manifest: Manifest) -> Iterator[ColumnFile]:
    """Yield the files of all columns."""
    for split in manifest.splits.values():
        if isinstance(split, ColumnSplit):
            yield from split.column_files()


def disagreements(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield one line for whatever in columns and binary indices the indices do not say."""
    for split in manifest.splits.values():
        for shard in split.shards if isinstance(split, ColumnSplit) else ():
            try:
                found = _table(checked_index(folder, shard))[1]
            except DatasetError:
                continue  # reported by the manifest's own check
            if found != shard.table:
                yield f"{folder / shard.table_name}: does not agree with {shard.index_name}"
    if manifest.in_columns and manifest.computed_fingerprint() != manifest.fingerprint:
        yield (
            f"{folder / FILE_NAME}: says fingerprint {manifest.fingerprint[:12]}, its columns give "
            f"{manifest.computed_fingerprint()[:12]}"
        )


def _write_table(folder: OutputFolder, shard: ShardRecord, known: TabledRecord | None) -> Table:
    """Write the binary index of a shard unless it is there.

    Args:
        folder: folder of the shard.
        shard: record of the shard.
        known: its record in the folder's manifest, if that has one.
    """
    name = table_name(shard.stem)
    same = known is not None and known.index_sha256 == shard.index_sha256
    if known is not None and same and folder.sha256(name) == known.table.sha256:
        return known.table
    path = f"{masked(folder.path)}/{shard.index_name}"
    text = folder.read(shard.index_name)
    if text is None or hashlib.sha256(text).hexdigest() != shard.index_sha256:
        raise DatasetError(
            f"{path}: {'is missing' if text is None else 'is not what the manifest says'}; build "
            "the dataset again, or copy the file again"
        )
    data, table = _table(shard_index(text, shard, path))
    if folder.sha256(name) != table.sha256:
        folder.write(name, data)
    return table


def _table(index: Index) -> tuple[bytes, Table]:
    data = table_of(index)
    sizes = (
        int(index.has("jpg").sum()),
        int(index.has("npy").sum()),
        int(index.places("npy")[:, 1].max(initial=0)),
    )
    return data, Table(hashlib.sha256(data).hexdigest(), sizes)


def _known(folder: OutputFolder, earlier: Manifest | None) -> dict[str, TabledRecord]:
    """Return the records that the folder's manifest has in columns, by name."""
    with contextlib.suppress(DatasetError):
        splits = (earlier or Manifest.load(folder.path)).splits.values()
        return {
            shard.name: shard
            for split in splits
            for shard in (split.shards if isinstance(split, ColumnSplit) else ())
        }
    return {}
