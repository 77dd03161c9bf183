"""Records of Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from vse_shards.errors import SourceError
from vse_shards.notes import shown
from vse_shards.sources.tabular.columns import Columns
from vse_shards.sources.tabular.files import TableFile, seekable
from vse_shards.sources.tabular.rows import Record

_ROWS, _IMAGE_ROWS = 1024, 32  # of a batch; images are large
_BUFFER = 1 << 20  # bytes of each column that are read at once


def parquet_records(stream: BinaryIO, file: TableFile, columns: Columns) -> Iterator[Record]:
    """Yield the records of a file, batch by batch.

    Raises:
        SourceError: pyarrow is not installed, or the file cannot be read, or lacks a column.
    """
    parquet = import_parquet(file.path)
    try:
        table = parquet.ParquetFile(seekable(stream), buffer_size=_BUFFER)
        schema = table.schema_arrow
        chosen = columns.choose(schema.names, file.path)
        wanted = sorted({column for found in chosen.values() for column in found})
        text = str(schema.field(chosen["image"][0]).type) in ("string", "large_string")
        number = 0
        for batch in table.iter_batches(_ROWS if text else _IMAGE_ROWS, columns=wanted):
            for entry in batch.to_pylist():
                cells = {name: _value(entry, found) for name, found in chosen.items()}
                yield Record(f"{file.name} row {number}", cells, len(chosen["caption"]) > 1)
                number += 1
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise SourceError(
            f"{file.path}: cannot be read as Parquet: {shown(' '.join(str(error).split()))}"
        ) from error


def _value(entry: dict[str, Any], columns: tuple[str, ...]) -> Any:
    return entry[columns[0]] if len(columns) == 1 else [entry[column] for column in columns]


def import_parquet(path: str) -> Any:
    """Return pyarrow's parquet module.

    Raises:
        SourceError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise SourceError(
            f"{path}: reading Parquet needs pyarrow, which is not installed; pip install pyarrow"
        ) from None
    return pyarrow.parquet
