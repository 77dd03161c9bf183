"""Time and memory to open made datasets of up to 1.28e9 pairs, as a list and in columns.

    python tests/scaling/opening.py [PAIRS ...]

prints the table of docs/scaling.md. A dataset has 10,000 images a shard, two or three captions
each. Its tars and indices are links to one file each, since opening looks at sizes and digests
alone. For each version of the format a process of its own opens the split, and reads an image of
each of 100 places.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from order_scaling import SHARD, chunks, memory, write_column

from vse_shards.columns import ColumnSplit, Table, column_name, columns_of, entry_of
from vse_shards.index import Member, format_index, parse_index
from vse_shards.manifest import FILE_NAME, Manifest, Split, column_opener
from vse_shards.records import ShardRecord, run_length_code
from vse_shards.table import table_of

SIZES = (1_000_000, 10_000_000, 100_000_000, 1_280_000_000)
MOST_LISTED = 10_000_000  # pairs: beyond, the list is longer than what is read of any JSON
READ = 100  # shards of which a place is read
MEMBER = 1024  # bytes from one member of a tar to the next


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        print(measured(Path(arguments[1])))
        return
    print("| pairs | shards | version | manifest and columns, MB | opened, s | MB, of it before "
          "| an image of another shard, ms |")  # fmt: skip
    print("|---:|---:|---|---:|---:|---:|---:|")
    for size in map(int, map(float, arguments)) if arguments else SIZES:
        for version in (1, 2):
            if version == 1 and size > MOST_LISTED:
                continue
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                shards = make(folder, size, version)
                kept = [FILE_NAME, *(f.name for f in folder.glob("train.*.npy"))]
                megabytes = sum((folder / one).stat().st_size for one in kept) / 1e6
                row = subprocess.run(
                    [sys.executable, __file__, "--one", name],
                    check=True, capture_output=True, text=True,
                ).stdout.strip()  # fmt: skip
            print(f"| {size:.3g} | {shards:,} | {version} | {megabytes:.1f} | {row} |", flush=True)


def make(folder: Path, pairs: int, version: int) -> int:
    """Write a dataset of about ``pairs`` pairs; return the number of its shards."""
    counts = folder / "counts"
    write_column(counts, pairs)
    column = np.load(counts, mmap_mode="r")
    records, files = [], {}
    for number, part in enumerate(chunks(column, SHARD)):
        samples = len(part)
        if samples not in files:
            files[samples] = one_shard(folder, samples)
        size, sha256, table = files[samples]
        stem = f"train-{number:06d}"
        for suffix in (".tar", ".idx", ".idx.npy"):
            os.symlink(f"{samples}{suffix}", folder / f"{stem}{suffix}")
        captions = run_length_code(part) if version == 1 else ((0, 0),)
        total = int(part.sum(dtype=np.int64))
        record = ShardRecord(f"{stem}.tar", samples, total, size, "0" * 64, sha256, captions)
        records.append((record, table))
    split: Split = Split(tuple(record for record, _ in records))
    manifest = Manifest({"train": split}, 0, "0" * 64, {}, {})
    if version == 2:
        manifest = in_columns(folder, Counted(split.shards, column), [t for _, t in records])
    (folder / FILE_NAME).write_text(manifest.dumps())
    counts.unlink()
    return len(records)


class Counted(Split):
    """A split whose captions are a column from the start: run lengths would take gigabytes."""

    def __init__(self, shards: tuple[ShardRecord, ...], column: np.ndarray) -> None:
        super().__init__(shards)
        object.__setattr__(self, "column", column)

    def captions_per_sample(self) -> np.ndarray:
        return self.column


def in_columns(folder: Path, split: Split, tables: list[Table]) -> Manifest:
    """Write the columns; the fingerprint, which opening takes as stated, is a made one."""
    columns = columns_of(split, tables)
    for name, data in columns.items():
        sha256 = hashlib.sha256(data).hexdigest()
        (folder / column_name("train", name, sha256)).write_bytes(data)
    opened = ColumnSplit("train", entry_of(split, columns), column_opener(str(folder)))
    return Manifest({"train": opened}, 0, "0" * 64, {}, {}, "0" * 64)


def one_shard(folder: Path, samples: int) -> tuple[int, str, Table]:
    """Write an empty tar of a shard's size and its indices."""
    rows = []
    for row in range(samples):
        members = []
        for place, extension in enumerate(("jpg", "json")):
            offset = (2 * row + place) * MEMBER + 512
            members.append(Member(extension, offset, 400, f"{row:08d}.{extension}"))
        rows.append(members)
    text, size = format_index(rows), (2 * samples + 1) * MEMBER
    (folder / f"{samples}.idx").write_text(text)
    table = table_of(parse_index(text, "made"))
    (folder / f"{samples}.idx.npy").write_bytes(table)
    with (folder / f"{samples}.tar").open("wb") as file:
        file.truncate(size)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return size, sha256, Table(hashlib.sha256(table).hexdigest(), (samples, 0, 0))


def measured(folder: Path) -> str:
    """Return the cells of a row: seconds, megabytes, milliseconds of a place."""
    from vse_scale.data.shards import ShardDataset

    before, began = memory(), time.perf_counter()
    dataset = ShardDataset(folder, "train")
    opened = time.perf_counter() - began
    assert dataset.holds("images")
    after = memory()
    images = np.linspace(0, len(dataset) - 1, READ).astype(int).tolist()
    began = time.process_time()
    for image in images:
        assert dataset.image_bytes(image).size == 400
    each = 1000 * (time.process_time() - began) / READ
    return f"{opened:.2f} | {after:.0f}, {before:.0f} | {each:.2f}"


if __name__ == "__main__":
    main(sys.argv[1:])
