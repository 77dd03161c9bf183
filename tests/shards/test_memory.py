"""Memory of reading does not grow with the rows of a table, or with the members of a tar."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from memory import run_alone

from vse_shards.rows import RowStore
from vse_shards.sources.registry import SourceRequest, open_source

TABLES = ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "jsonl.gz", "json.gz"]

# Plans as a build does, and prints the rows and the most memory in MB.
READ = """
import sys
from memory import peak_memory
from pathlib import Path
from vse_shards.rows import RowStore
from vse_shards.sources.registry import SourceRequest, open_source
kind, path, store = sys.argv[1:]
with RowStore(Path(store)) as rows:
    rows.fill(open_source(kind, SourceRequest(path)).rows(), None)
    rows.repeats(), rows.leaks(), rows.digest()
    print(rows.read, peak_memory() / 1e6)
"""


def row(number: int, captions: int, words: int) -> dict[str, object]:
    """A row whose id is shared by as many rows as an image has captions; all show one image."""
    return {
        "image": "a.jpg",
        "image_id": number // captions,
        "caption": " ".join([str(number), *["wording"] * words]),
    }


def write_delimited(path: Path, rows: Iterator[dict[str, object]], delimiter: str) -> None:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="") as file:
        table = csv.DictWriter(file, ["image", "image_id", "caption"], delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)


def write_json(path: Path, rows: Iterator[dict[str, object]], *, listed: bool) -> None:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        file.write("[" if listed else "")
        for number, one in enumerate(rows):
            file.write(("," if listed and number else "") + json.dumps(one) + "\n")
        file.write("]" if listed else "")


def write_parquet(path: Path, rows: Iterator[dict[str, object]]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    schema = pa.schema({"image": pa.string(), "image_id": pa.int64(), "caption": pa.string()})
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while batch := list(itertools.islice(rows, 20_000)):
            writer.write_table(pa.Table.from_pylist(batch, schema))


def write_tar(path: Path, rows: Iterator[dict[str, object]], image: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for number, one in enumerate(rows):
            for extension, data in (("jpg", image), ("txt", str(one["caption"]).encode())):
                member = tarfile.TarInfo(f"{number:07d}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def write(tmp_path: Path, tools) -> Callable[..., Path]:
    """Write a table of a number of rows, or a tar of as many members, beside its only image."""
    image = tools.encoded(tools.picture(0))
    (tmp_path / "a.jpg").write_bytes(image)

    def written(kind: str, count: int, words: int = 5) -> Path:
        path = tmp_path / f"rows{count}.{kind}"
        captions = 1 if kind.startswith("jsonl") else 5  # a row of JSON lines is an image
        rows = (row(number, captions, words) for number in range(count))
        if kind == "tar":
            write_tar(path, itertools.islice(rows, count // 2), image)
        elif kind == "parquet":
            write_parquet(path, rows)
        elif kind.startswith("json"):
            write_json(path, rows, listed=not kind.startswith("jsonl"))
        else:
            write_delimited(path, rows, "\t" if kind == "tsv" else ",")
        return path

    return written


def source(kind: str) -> str:
    return "webdataset" if kind == "tar" else kind.removesuffix(".gz")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_a_table_four_times_as_long_takes_no_more_memory(kind, write, tmp_path):
    peaks = []
    for count in (1_500, 6_000):  # the shorter fills a block of each reader
        path = write(kind, count, words=100)
        with RowStore(tmp_path / f"store{count}") as store:
            tracemalloc.start()
            store.fill(open_source(source(kind), SourceRequest(str(path))).rows(), None)
            peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
            tracemalloc.stop()
            assert store.read == count
    # The captions alone of the further rows are 3 MB.
    assert peaks[1] < peaks[0] + 2, f"MB at 1,500 and 6,000 rows: {peaks}"


def test_a_parquet_table_five_times_as_long_takes_no_more_memory(write, tmp_path):
    """Arrow holds its own memory, which only the kernel sees."""
    peaks = []
    for count in (5_000, 25_000):
        path = write("parquet", count, words=200)
        read, peak = run_alone(READ, "parquet", path, tmp_path / f"store{count}")
        assert int(read) == count
        peaks.append(float(peak))
    # The captions alone of the further rows are 32 MB.
    assert peaks[1] < peaks[0] + 24, f"MB at 5,000 and 25,000 rows: {peaks}"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "counts"), [*((k, (10_000, 1_000_000)) for k in TABLES), ("tar", (10_000, 100_000))]
)
def test_memory_is_flat_in_the_number_of_rows(kind, counts, write, tmp_path):
    peaks = []
    for count in counts:
        path = write(kind, count)
        read, peak = run_alone(READ, source(kind), path, tmp_path / "store", seconds=3600)
        assert int(read) == (count // 2 if kind == "tar" else count)
        peaks.append(float(peak))
    print(f"{kind}: {peaks[0]:.1f} and {peaks[1]:.1f} MB at {counts[0]:,} and {counts[1]:,}")
    assert peaks[1] < 1.25 * peaks[0]
