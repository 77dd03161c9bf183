"""``csv`` and ``parquet``: one row per image, or one per (image, caption) pair."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeGuard

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.notes import Notes
from vse_shards.sources.base import Location, Problem, Row, is_id, is_unicode, usable_captions
from vse_shards.sources.finding import ImageFinder
from vse_shards.sources.splits import FileSplit

# Common names of each column, the standard name first.
_ALIASES: dict[str, tuple[str, ...]] = {
    "image": ("image", "image_path", "image_name", "file_name", "filename", "filepath", "path"),
    "caption": ("caption", "captions", "text", "comment", "sentence"),
    "split": ("split",),
    "image_id": ("image_id", "imgid"),
    "caption_id": ("caption_id", "caption_ids", "sentid", "sentids"),
}
_REQUIRED = ("image", "caption")
_MAX_CELL = 16 << 20  # characters; csv's own limit is 128 kB


class TableSource:
    """Base of csv and parquet: columns, and the conversion of cells to rows.

    Captions of the same image are joined, wherever its rows are.

    Args:
        path: path of the file.
        images: folder that image paths are relative to; the default is that of the file.
        columns: the file's names of ``image``, ``caption``, ``split``, ``image_id`` and
            ``caption_id``.

    Raises:
        SourceError: there is no such file or folder, or an unknown column is named.
    """

    kind: ClassVar[str] = "table"
    options: ClassVar[frozenset[str]] = frozenset({"images", "columns"})

    def __init__(
        self, path: str, images: str | None = None, columns: Mapping[str, str] | None = None
    ) -> None:
        self._path = storage.require_input(path)
        self.name = storage.base_name(self._path)
        self.notes = Notes()
        self._split = FileSplit(self.name, self.notes)
        self._images = (
            storage.require_input(images, folder=True) if images else storage.parent(self._path)
        )
        self._finder = ImageFinder(self._images, self.notes.say)
        self._named = dict(columns or {})
        for name in self._named:
            if name not in _ALIASES:
                raise SourceError(
                    f"--column {name}={self._named[name]}: {name!r} is not a known column; "
                    f"choose from {', '.join(_ALIASES)}"
                )

    def _columns(self, found: Sequence[str]) -> dict[str, str]:
        """Return the file's column of each standard name.

        Raises:
            SourceError: a required or named column is missing.
        """
        columns = {}
        for name, aliases in _ALIASES.items():
            if name in self._named:
                if self._named[name] not in found:
                    raise self._missing(self._named[name], found)
                columns[name] = self._named[name]
            else:
                known = next((alias for alias in aliases if alias in found), None)
                if known is not None:
                    columns[name] = known
                elif name in _REQUIRED:
                    raise self._missing(name, found)
        return columns

    def _missing(self, name: str, found: Sequence[str]) -> SourceError:
        near = difflib.get_close_matches(name, found, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return SourceError(
            f"{self._path}: has no column {name!r}{hint} It has {', '.join(found[:12]) or 'none'}; "
            "name it with --column, such as --column image=COLUMN"
        )

    def _row(self, cells: Mapping[str, Any], origin: str) -> Iterator[Row | Problem]:
        """Convert cells, by standard name, to a row; missing and empty cells are None or ``""``."""
        image, split = cells.get("image"), self._split.of(cells.get("split"))
        image_id: Any = image if cells.get("image_id") in (None, "") else cells["image_id"]
        if not _is_path(image):
            shown = type(image).__name__ if isinstance(image, (bytes, dict)) else repr(image)
            yield Problem(origin, None, None, "malformed row", f"image is {shown}, not a path")
            return
        if not isinstance(split, str) or not is_id(image_id):
            detail = f"split is {split!r}, image_id is {image_id!r}"
            yield Problem(origin, image, None, "malformed row", detail)
            return
        texts, ids = cells.get("caption"), cells.get("caption_id")
        several = isinstance(texts, list)
        if not several:
            texts, ids = [texts], None if ids in (None, "") else [ids]
        captions, problems = usable_captions(texts, ids, origin=origin, key=image_id, split=split)
        # Other rows may have captions of the same image.
        yield from (p for p in problems if several or p.reason != "no caption")
        if captions:
            path, name = self._finder.locate(image)
            yield Row(split, image_id, captions, Location(path), origin, name, partial=not several)


class CsvSource(TableSource):
    """A table with a header line, separated by ``,``, ``;``, ``|`` or tabs."""

    kind: ClassVar[str] = "csv"

    def rows(self) -> Iterator[Row | Problem]:
        """Yield a row per line.

        Raises:
            SourceError: the file cannot be read, or lacks a column.
        """
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))
        number = 1
        try:
            with storage.open_binary(self._path) as binary:
                file = io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="")
                header = file.readline()
                delimiter = max(",;|\t", key=header.count)
                cells = next(csv.reader([header], delimiter=delimiter), [])
                found = [cell.strip() for cell in cells]
                if not any(found):
                    raise SourceError(f"{self._path}: is empty; its first line must name columns")
                positions = {name: found.index(c) for name, c in self._columns(found).items()}
                reader = csv.reader(file, delimiter=delimiter)
                for line in reader:
                    number = reader.line_num + 1
                    if line:
                        yield from self._line(line, positions, f"{self.name} line {number}")
        except (OSError, csv.Error) as error:
            raise SourceError(f"{self._path}: line {number} cannot be read: {error}") from error

    def _line(
        self, line: list[str], positions: Mapping[str, int], origin: str
    ) -> Iterator[Row | Problem]:
        if len(line) <= max(positions.values()):
            detail = f"has {len(line)} cells; the header names more"
            yield Problem(origin, None, None, "malformed row", detail)
            return
        cells = {name: line[position].strip() for name, position in positions.items()}
        if not all(map(is_unicode, cells.values())):
            yield Problem(origin, None, None, "malformed row", "not UTF-8")
            return
        yield from self._row({name: _number(name, cell) for name, cell in cells.items()}, origin)


class ParquetSource(TableSource):
    """A Parquet table; the caption column holds strings or lists of strings.

    Needs pyarrow: ``pip install 'vse-scale[parquet]'``.
    """

    kind: ClassVar[str] = "parquet"

    def rows(self) -> Iterator[Row | Problem]:
        """Yield a row per row, read batch by batch.

        Raises:
            SourceError: pyarrow is not installed, or the file cannot be read, or lacks a column.
        """
        parquet = import_parquet(self._path)
        try:
            with storage.open_binary(self._path) as binary:
                table = parquet.ParquetFile(binary)
                columns = self._columns(table.schema_arrow.names)
                number = 0
                for batch in table.iter_batches(1024, columns=sorted(set(columns.values()))):
                    for entry in batch.to_pylist():
                        cells = {name: entry[column] for name, column in columns.items()}
                        yield from self._row(cells, f"{self.name} row {number}")
                        number += 1
        except (OSError, ValueError) as error:  # pyarrow's own errors are among these
            raise SourceError(f"{self._path}: cannot be read as Parquet: {error}") from error


def import_parquet(path: str) -> Any:
    """Return pyarrow's parquet module.

    Raises:
        SourceError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise SourceError(
            f"{path}: reading Parquet needs pyarrow, which is not installed; "
            "pip install 'vse-scale[parquet]'"
        ) from None
    return pyarrow.parquet


def _is_path(cell: Any) -> TypeGuard[str]:
    return isinstance(cell, str) and bool(cell) and is_unicode(cell) and "\0" not in cell


def _number(name: str, cell: str) -> str | int:
    """Convert an id to an integer if it is one; csv has only strings."""
    if name in ("image_id", "caption_id") and cell.isdecimal() and str(int(cell)) == cell:
        return int(cell)
    return cell
