"""Samples of finished datasets, by their ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vse_shards.caption_table import CaptionTable, scratch_database
from vse_shards.index import read_index
from vse_shards.info import read_description
from vse_shards.manifest import Manifest
from vse_shards.plain_files import open_plain
from vse_shards.progress import Progress
from vse_shards.shard import read_outcome
from vse_shards.sources import Caption


@dataclass(frozen=True)
class Stored:
    """One stored sample.

    Attributes:
        folder: folder of its dataset.
        split: its split.
        stem: its shard, without suffix.
        row: its place in the shard.
        key: its key in the shard.
        description: its JSON member.
        digest: digest of its image, "" if it has none.
        places: offset and size in bytes of each member, by extension.
    """

    folder: Path
    split: str
    stem: str
    row: int
    key: str
    description: dict[str, Any]
    digest: str
    places: dict[str, tuple[int, int]]

    def place(self) -> str:
        """Return its place for messages."""
        return f"{self.folder}/{self.stem}.tar, sample {self.row}"

    def member(self, extension: str) -> bytes | None:
        """Read a member; None if the sample has none of this extension."""
        offset, size = self.places.get(extension, (-1, -1))
        if size < 0:
            return None
        with open_plain(self.folder / f"{self.stem}.tar") as file:
            file.seek(offset)
            return file.read(size)


class Contents:
    """Ids of the samples of one or several datasets, in SQLite.

    Args:
        path: path of the file; it is removed at first.
    """

    def __init__(self, path: Path) -> None:
        self._db = scratch_database(path)
        self._db.execute(
            "CREATE TABLE samples (number INTEGER PRIMARY KEY, image_id TEXT, folder TEXT,"
            " split TEXT, stem TEXT, row INTEGER, key TEXT, description TEXT, digest TEXT,"
            " places TEXT)"
        )
        self._captions = CaptionTable(self._db)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add(self, folder: Path, manifest: Manifest) -> None:
        """Read the ids of a dataset.

        Raises:
            DatasetError: a description cannot be read.
        """
        total = sum(split.images for split in manifest.splits.values())
        with Progress("reading ids", total, "images") as progress:
            for done, stored in enumerate(samples(folder, manifest), start=1):
                added = self._db.execute(
                    "INSERT INTO samples (image_id, folder, split, stem, row, key, description,"
                    " digest, places) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        json.dumps(stored.description["image_id"]),
                        str(folder),
                        stored.split,
                        stored.stem,
                        stored.row,
                        stored.key,
                        json.dumps(stored.description),
                        stored.digest,
                        json.dumps(stored.places),
                    ),
                )
                captions = stored.description["captions"]
                self._captions.add(
                    int(added.lastrowid or 0), [Caption(c["id"], c["text"]) for c in captions]
                )
                progress.update(done)
        self._db.execute("CREATE INDEX IF NOT EXISTS by_id ON samples (image_id)")

    def find(self, image_id: str | int) -> list[Stored]:
        """Return the samples of an id."""
        return list(self._select("WHERE image_id = ?", json.dumps(image_id)))

    def split(self, image_id: str | int) -> str | None:
        """Return the split of the first sample of an id, None if there is none."""
        found = self._db.execute(
            "SELECT split FROM samples WHERE image_id = ? ORDER BY number LIMIT 1",
            (json.dumps(image_id),),
        ).fetchone()
        return None if found is None else str(found[0])

    def id_clash(self) -> tuple[Stored, Stored] | None:
        """Return two samples of one id in two datasets, if there are any."""
        found = self._db.execute(
            "SELECT MIN(number), MAX(number) FROM samples GROUP BY image_id"
            " HAVING COUNT(DISTINCT folder) > 1 ORDER BY 1 LIMIT 1"
        ).fetchone()
        return None if found is None else (self._sample(found[0]), self._sample(found[1]))

    def note_new(self, number: int, captions: Iterable[Caption[str | int | None]]) -> None:
        """Add the captions of a row that is not stored yet."""
        self._captions.add(-number, captions)

    def caption_id_clash(self) -> tuple[str | int, list[Stored | int]] | None:
        """Return a caption id that stands twice, with a stored sample or a new row's number each.

        Ids that number the captions of each image are none of the dataset: None for these.
        """
        twice = self._captions.id_that_stands_twice()
        if twice is None:
            return None
        return twice[0], [-n if n < 0 else self._sample(n) for n in twice[1:]]

    def _sample(self, number: int) -> Stored:
        return next(self._select("WHERE number = ?", number))

    def _select(self, condition: str, value: object) -> Iterator[Stored]:
        query = "SELECT folder, split, stem, row, key, description, digest, places FROM samples"
        for folder, split, stem, row, key, text, digest, places in self._db.execute(
            f"{query} {condition}", (value,)
        ):
            description, members = json.loads(text), json.loads(places)
            yield Stored(Path(folder), split, stem, row, key, description, digest, members)


def samples(folder: Path, manifest: Manifest) -> Iterator[Stored]:
    """Yield the samples of a dataset, split by split.

    Raises:
        DatasetError: a description or the record of a shard cannot be read.
    """
    for split, content in manifest.splits.items():
        for shard in content.shards:
            stem = shard.name.removesuffix(".tar")
            index = read_index(folder / shard.index_name)
            digests = read_outcome(folder, stem, len(index)).digests
            with open_plain(folder / shard.name) as file:
                for row in range(len(index)):
                    description = read_description(file, folder / shard.name, index, row)
                    places = {one: index.place(row, one) for one in index.extensions}
                    yield Stored(
                        folder, split, stem, row, index.keys[row], description, digests[row], places
                    )
