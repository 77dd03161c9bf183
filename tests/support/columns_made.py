"""Datasets of drawn bytes, of any number of shards, and columns that no upgrade wrote."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vse_shards.columns import NAMES, column_name
from vse_shards.manifest import FILE_NAME, REJECTS_NAME, Manifest, Split, _seal
from vse_shards.records import ShardRecord, run_length_code
from vse_shards.table import npy_bytes
from vse_shards.writer import ShardWriter


def drawn_dataset(folder: Path, seed: int, *, shards: int = 4, regions: bool = False) -> Path:
    """Write a dataset of version 1 whose images are random bytes, with 0 to 400 captions each."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    splits, rows = {}, {}
    for split in ("train", "val")[: rng.integers(1, 3)]:
        records, key = [], 0
        for number in range(int(rng.integers(1, shards + 1))):
            captions = rng.integers(0, rng.choice([2, 6, 400]), rng.integers(1, 12)).tolist()
            records.append(_shard(folder, f"{split}-{number:06d}", rng, captions, key, regions))
            key += len(captions)
        splits[split], rows[split] = Split(tuple(records)), key
    (folder / REJECTS_NAME).write_bytes(b"")
    empty = hashlib.sha256(b"").hexdigest()
    manifest = Manifest(splits, 0, empty, {"seed": seed}, {"kind": "drawn", "rows": rows})
    (folder / FILE_NAME).write_text(manifest.dumps())
    return folder


def _shard(
    folder: Path, stem: str, rng: np.random.Generator, captions: list[int], key: int, regions: bool
) -> ShardRecord:
    with (folder / f"{stem}.tar").open("wb") as file:
        writer = ShardWriter(file)
        for row, count in enumerate(captions):
            described = {
                "image_id": key + row,
                "captions": [{"id": k, "text": f"words {k}"} for k in range(count)],
                "width": int(rng.integers(8, 99)),
                "height": 9,
            }
            members = {"json": json.dumps(described).encode()}
            if regions:
                boxes = rng.normal(size=(rng.integers(1, 9), 5)).astype(np.float32)
                members = {"npy": npy_bytes(boxes), **members}
            if not regions or rng.random() < 0.5:
                members = {"jpg": rng.bytes(rng.integers(1, 3000)), **members}
            writer.add(f"{key + row:08d}", members)
        written = writer.finish()
    (folder / f"{stem}.idx").write_text(written.index)
    return ShardRecord(
        f"{stem}.tar", len(captions), sum(captions), written.bytes, written.sha256,
        hashlib.sha256(written.index.encode()).hexdigest(), run_length_code(captions),
    )  # fmt: skip


def columns_in(folder: Path, split: str = "train") -> dict[str, NDArray[Any]]:
    """Return the columns of a split of version 2."""
    return {name: np.load(next(folder.glob(f"{split}.{name}.*.npy"))) for name in NAMES}


def put_columns(folder: Path, changes: dict[str, Any], split: str = "train") -> None:
    """Put arrays, or bytes of their files, in the place of columns, under a seal that fits."""
    content = json.loads((folder / FILE_NAME).read_text())
    for name, value in changes.items():
        data = value if isinstance(value, bytes) else npy_bytes(value)
        sha256 = hashlib.sha256(data).hexdigest()
        content["splits"][split]["columns"][name] = {"bytes": len(data), "sha256": sha256}
        (folder / column_name(split, name, sha256)).write_bytes(data)
    put_manifest(folder, content)


def put_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest of version 2 under a seal that fits."""
    content = {key: value for key, value in content.items() if key != "seal"}
    (folder / FILE_NAME).write_text(json.dumps({**content, "seal": _seal(content)}))
