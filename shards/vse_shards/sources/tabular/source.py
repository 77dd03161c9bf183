"""``csv``, ``tsv``, ``jsonl``, ``json`` and ``parquet``: tables of images and captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO, ClassVar

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.notes import Notes, shown
from vse_shards.sources.base import Problem, Row
from vse_shards.sources.declared import CARD, card_splits
from vse_shards.sources.tabular.columns import Columns
from vse_shards.sources.tabular.delimited import Delimited, TextOptions, names_columns
from vse_shards.sources.tabular.files import (
    Format,
    TableFile,
    find_files,
    opened,
    peek,
    reading,
)
from vse_shards.sources.tabular.objects import Objects, json_format
from vse_shards.sources.tabular.parquet import parquet_records
from vse_shards.sources.tabular.rows import Images, Record, RowMaker
from vse_shards.sources.tabular.text import decoded_head

_TABS = (".tsv", ".tab", ".token")
_JSON = (Format.LINES, Format.VALUES, Format.OBJECT)


class TabularSource:
    """Rows of tables; a row holds an image and one or several of its captions.

    Column names are those of `ALIASES`. The captions of rows with the same image are joined. An
    image is a path, or stands in the table itself. Cells may hold lists.

    Args:
        path: a file, a folder with files of this kind, or a pattern such as ``train-*.parquet``;
            compressed or not.
        images: folder that image paths are relative to; the default is the folder of the table
            or, if the first image lies there, ``images`` in it.
        columns: the tables' names of ``image``, ``caption``, ``split``, ``image_id`` and
            ``caption_id``; of several caption columns, separated by commas.
        header: ``none`` if the first line is a row; columns are then numbered from 1.
        quoting: ``none`` if quotes are a part of the text.

    Raises:
        SourceError: there is no such file or folder, or an unknown column is named.
    """

    kind: ClassVar[str] = "table"
    options: ClassVar[frozenset[str]] = frozenset({"images", "columns"})
    suffixes: ClassVar[frozenset[str]] = frozenset()
    formats: ClassVar[tuple[Format, ...]] = ()
    joined: ClassVar[bool] = True

    def __init__(
        self,
        path: str,
        images: str | None = None,
        columns: Mapping[str, str] | None = None,
        header: str | None = None,
        quoting: str | None = None,
    ) -> None:
        self.notes = Notes()
        self.name, self._files = find_files(path, self.suffixes)
        self._declared = card_splits(path, [file.name for file in self._files], self.notes)
        self._folder = storage.require_input(images, folder=True) if images else None
        self._named = dict(columns or {})
        Columns(self._named, self.notes)
        for flag, value in (("--header", header), ("--quoting", quoting)):
            if value not in (None, "none"):
                raise SourceError(f"{flag} {shown(str(value))} is not known; choose none")
        self._header, self._quoting = header, quoting

    def rows(self) -> Iterator[Row | Problem]:
        """Yield the rows of each file in its order.

        Raises:
            SourceError: a file cannot be read, is no table, or lacks a column.
        """
        images = self._images = Images(self._folder, self.notes)  # a build reads what it keeps
        for file in self._files:
            declared = None
            if self._declared is not None:
                if file.name not in self._declared:
                    continue
                declared = self._declared[file.name], f"{CARD} says so"
            maker = RowMaker(file, images, self.joined, declared)
            for record in self._records(file):
                if isinstance(record, Problem):
                    yield record
                else:
                    yield from maker.rows(record)
        if images.spool.size:
            self.notes.say(
                f"images stand in the table: {images.spool.size / 1e6:,.1f} MB are kept in "
                f"{images.spool.folder} (TMPDIR) while the build runs"
            )

    def _records(self, file: TableFile) -> Iterator[Record | Problem]:
        with reading(file), opened(file, self.notes) as stream:
            found = self._format(stream, file)
            columns = Columns(self._named, self.notes)
            if found is Format.PARQUET:
                yield from parquet_records(stream, file, columns)
            elif found in _JSON:
                yield from Objects(stream, file, columns, self.notes).records(found)
            else:
                tabs = Format.DELIMITED not in self.formats or self._has_tabs(file)
                options = TextOptions(self._header, self._quoting, tabs)
                yield from Delimited(stream, file, columns, self.notes, options).records()

    def _has_tabs(self, file: TableFile) -> bool:
        return any(suffix in file.name.lower() for suffix in _TABS)

    def _format(self, stream: BinaryIO, file: TableFile) -> Format:
        """Return the format of a file: by its content, and where that says nothing by its kind."""
        head = peek(stream)
        if head.startswith(b"PAR1"):
            found = Format.PARQUET
        elif json := json_format(decoded_head(head)):
            found = json
        elif names_columns(decoded_head(head), Columns(self._named, Notes())) or (
            self.formats[0] is Format.PARQUET and b"\0" not in head
        ):
            found = Format.DELIMITED
        else:
            found = self.formats[0]
        if found not in self.formats:
            self.notes.say(f"{shown(file.name)} is {found.value}: it is read as such", found.value)
        return found


class CsvSource(TabularSource):
    """A text with a header line, separated by commas, semicolons, pipes or tabs."""

    kind: ClassVar[str] = "csv"
    options: ClassVar[frozenset[str]] = frozenset({"images", "columns", "header", "quoting"})
    suffixes: ClassVar[frozenset[str]] = frozenset({".csv", ".tsv"})
    formats: ClassVar[tuple[Format, ...]] = (Format.DELIMITED,)


class TsvSource(CsvSource):
    """The same, with tabs where there are any."""

    kind: ClassVar[str] = "tsv"
    suffixes: ClassVar[frozenset[str]] = frozenset({".tsv", ".tab"})

    def _has_tabs(self, file: TableFile) -> bool:
        return True


class JsonlSource(TabularSource):
    """A JSON object per line: ``{"image": path, "captions": [...]}``.

    Captions are strings, or objects with ``id`` and ``text``. Optional: ``split``, ``image_id`` (or
    ``imgid``; default the path), ``caption_ids`` (or ``sentids``).
    """

    kind: ClassVar[str] = "jsonl"
    suffixes: ClassVar[frozenset[str]] = frozenset({".jsonl", ".ndjson"})
    formats: ClassVar[tuple[Format, ...]] = (Format.LINES, Format.OBJECT)
    joined: ClassVar[bool] = False


class JsonSource(TabularSource):
    """A JSON list of objects, as of BLIP and LLaVA, or an object of captions by image."""

    kind: ClassVar[str] = "json"
    suffixes: ClassVar[frozenset[str]] = frozenset({".json"})
    formats: ClassVar[tuple[Format, ...]] = (Format.VALUES, Format.OBJECT, Format.LINES)


class ParquetSource(TabularSource):
    """A Parquet table. Needs pyarrow: ``pip install pyarrow``."""

    kind: ClassVar[str] = "parquet"
    suffixes: ClassVar[frozenset[str]] = frozenset({".parquet", ".pq"})
    formats: ClassVar[tuple[Format, ...]] = (Format.PARQUET,)
