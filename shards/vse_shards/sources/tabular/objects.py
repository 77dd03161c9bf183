"""Records of JSON: an object a line, a list of objects, or an object of images and captions."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from vse_shards.errors import SourceError
from vse_shards.json_text import parse_json
from vse_shards.notes import Notes, shown
from vse_shards.sources.base import Problem
from vse_shards.sources.splits import find_split
from vse_shards.sources.tabular.cells import BadCell, captions_of, is_empty
from vse_shards.sources.tabular.columns import Columns, missing
from vse_shards.sources.tabular.files import Format, TableFile
from vse_shards.sources.tabular.rows import Record
from vse_shards.sources.tabular.text import blocks, is_damaged, lines

_BLOCK = 1 << 20  # characters
_MOST = 256 << 20  # characters of one object in a list
_WITNESSES = 100  # rows of which one must have a named column
_SPACE = " \t\r\n"
_SPACES = re.compile(r"[ \t\r\n]+")
_BEGIN = re.compile(r'\s*(\[\s*\{|\[\s*\]|\{\s*"|\{\s*\})')
_KNOWN_KEYS = 1000  # different sets of keys that are remembered


def json_format(head: str) -> Format | None:
    """Return the format of a text that begins as JSON with objects, None if it does not."""
    if not _BEGIN.match(head):
        return None
    text = head.lstrip(_SPACE)
    if text.startswith("["):
        return Format.VALUES
    whole, _, rest = text.partition("\n")
    # One row may be damaged, so that it is not JSON; an object in one line may be all rows.
    several = bool(rest.strip(_SPACE))
    found = several and (_is_object(whole) or any(map(_is_object, rest.split("\n"))))
    return Format.LINES if found else Format.OBJECT


def _is_object(text: str) -> bool:
    try:
        return isinstance(parse_json(text, surrogates=True), dict)
    except ValueError:
        return False


class Objects:
    """A JSON file.

    Args:
        stream: the file.
        file: its names.
        columns: choice of the keys that are read.
        notes: told encoding and keys.
    """

    def __init__(self, stream: BinaryIO, file: TableFile, columns: Columns, notes: Notes) -> None:
        self._stream, self._file, self._columns, self._notes = stream, file, columns, notes
        self._known: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = {}
        self._named: dict[str, tuple[str, ...]] | None = None
        self._told = False

    def records(self, layout: Format) -> Iterator[Record | Problem]:
        """Yield the records in their order, and problems for values that are no objects.

        Raises:
            SourceError: it is not JSON, is another source's layout, or lacks a named column.
        """
        readers = {
            Format.LINES: self._lines,
            Format.VALUES: self._values,
            Format.OBJECT: self._object,
        }
        waiting: list[Record | Problem | tuple[str, dict[str, Any]]] = []
        keys: dict[str, None] = {}
        for found in readers[layout]():
            if self._named is not None:
                yield found if isinstance(found, Problem) else self._record(*found)
                continue
            waiting.append(found)
            keys.update(dict.fromkeys(found[1]) if isinstance(found, tuple) else {})
            if self._find_named(keys, final=len(waiting) >= _WITNESSES):
                yield from self._released(waiting)
        if self._named is None and waiting:
            self._find_named(keys, final=bool(keys))
            self._named = self._named or {}
            yield from self._released(waiting)

    def _find_named(self, keys: Mapping[str, None], *, final: bool) -> bool:
        """Resolve the named columns among the keys seen so far; return whether all are there.

        Raises:
            SourceError: one is missing, and no further rows are waited for.
        """
        try:
            self._named = self._columns.named(list(keys))
        except KeyError as error:
            if final:
                raise missing(error.args[0], list(keys), self._file.path) from None
            return False
        return True

    def _released(self, waiting: list[Any]) -> Iterator[Record | Problem]:
        for found in waiting:
            yield found if isinstance(found, Problem) else self._record(*found)
        waiting.clear()

    def _record(self, origin: str, entry: dict[str, Any]) -> Record:
        keys = tuple(entry)
        choices = self._known.get(keys) or self._choices(keys)
        cells: dict[str, Any] = {}
        used: dict[str, tuple[str, ...]] = {}
        for name, candidates in choices.items():
            if self._named and name in self._named:
                values = [entry.get(key) for key in candidates]
                cells[name], used[name] = values if len(values) > 1 else values[0], candidates
                continue
            for key in candidates:
                if entry[key] is not None:
                    cells[name], used[name] = entry[key], (key,)
                    break
        if not self._told and "image" in used and "caption" in used:
            self._told = True
            self._columns.tell(used, keys)
        return Record(origin, cells, len(used.get("caption", ())) > 1, keys)

    def _choices(self, keys: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """Find the keys to look at for each column in a record of ``keys``, and remember them."""
        if len(self._known) >= _KNOWN_KEYS:
            self._known.clear()
        found = {**self._columns.candidates(keys), **(self._named or {})}
        choices = self._known[keys] = {name: c for name, c in found.items() if c}
        return choices

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]] | Problem]:
        texts = lines(self._stream, self._file.name, self._notes)
        for number, line in enumerate(texts, start=1):
            text = line.strip()
            if not text:
                continue
            origin = f"{self._file.name} line {number}"
            if is_damaged(text):
                yield Problem(origin, None, None, "malformed row", "not UTF-8")
                continue
            try:
                entry = parse_json(text, surrogates=True)
            except ValueError as error:
                yield Problem(origin, None, None, "malformed row", f"not JSON: {error}")
                continue
            yield self._checked(origin, entry)

    def _checked(self, origin: str, entry: Any) -> tuple[str, dict[str, Any]] | Problem:
        if not isinstance(entry, dict):
            return Problem(origin, None, None, "malformed row", "not a JSON object")
        return origin, entry

    def _values(self) -> Iterator[tuple[str, dict[str, Any]] | Problem]:
        """Yield the values of a list, or of objects one after the other, block by block."""
        for number, entry in enumerate(values(self._text(), self._file)):
            yield self._checked(f"{self._file.name} row {number}", entry)

    def _text(self) -> Any:
        return blocks(self._stream, self._file.name, self._notes)

    def _object(self) -> Iterator[tuple[str, dict[str, Any]] | Problem]:
        """Yield the rows of one object: itself, splits of lists, or captions by image."""
        found = values(self._text(), self._file)
        content: dict[str, Any] = next(found, {})
        second = next(found, None)
        if second is not None:
            for number, entry in enumerate(itertools.chain([content, second], found)):
                yield self._checked(f"{self._file.name} row {number}", entry)
            return
        self._refuse_layouts(content)
        rows = {key: value for key, value in content.items() if _are_rows(value)}
        fits = self._columns.fit(list(content))
        if not fits and rows and (len(rows) == 1 or all(map(find_split, rows))):
            yield from self._lists(rows)
        elif fits or any(self._columns.candidates(list(content)).values()) or not content:
            yield self._checked(f"{self._file.name} line 1", content)
        else:
            yield from self._by_image(content)

    def _refuse_layouts(self, content: Mapping[str, Any]) -> None:
        """Refuse an object that another source reads.

        Raises:
            SourceError: it is one; the message names the source.
        """
        where, images = self._file.path, content.get("images")
        if "annotations" in content and "images" in content:
            raise SourceError(f"{where}: is COCO's layout: read it with --source coco")
        if _are_rows(images) and "sentences" in images[0]:  # type: ignore[index]
            raise SourceError(f"{where}: is Karpathy's layout: read it with --source karpathy")
        data = content.get("data")
        apart = "columns" in content and isinstance(data, list) and not _are_rows(data)
        if apart or (self._columns.fit(list(content)) and _are_columns(list(content.values()))):
            raise SourceError(
                f"{where}: is a table by columns; write a list of rows, as pandas does with "
                "to_json(orient='records')"
            )

    def _lists(self, rows: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]] | Problem]:
        for key, entries in rows.items():
            split = find_split(key)
            for number, entry in enumerate(entries):
                if isinstance(entry, dict) and split is not None and is_empty(entry.get("split")):
                    entry = {**entry, "split": split[0]}
                yield self._checked(f"{self._file.name} {shown(key)} row {number}", entry)

    def _by_image(self, content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, (image, value) in enumerate(content.items()):
            if isinstance(value, dict):
                entry = {"image": image, **value}
            elif _are_captions(value):
                entry = {"image": image, "captions": value}
            else:
                raise SourceError(
                    f"{self._file.path}: is an object that has {shown(image)!r} at its top; wanted "
                    "are rows, a list of rows, or captions by image"
                )
            yield f"{self._file.name} row {number}", entry


def _are_columns(values: list[Any]) -> bool:
    """Return whether values are columns of a table, by index or in order."""
    if all(isinstance(value, dict) for value in values):
        return True
    lists = [value for value in values if isinstance(value, list) and len(value) > 1]
    return len(lists) == len(values) and len(set(map(len, lists))) == 1


def values(text: Any, file: TableFile) -> Iterator[Any]:
    """Yield JSON values one after the other, from a list or without one, in bounded memory.

    Args:
        text: has ``read(size)``.
        file: the file, for messages.

    Raises:
        SourceError: something is not JSON.
    """
    scan = _Scanner(text, file)
    listed = scan.take("[")
    ended = not listed
    while scan.more():
        if listed and scan.take("]"):
            ended = True
            break
        yield scan.value()
        scan.take(",")
    if not ended:
        raise SourceError(
            f"{file.path}: ends within its list, after {scan.number:,} rows; is it cut?"
        )
    if scan.more():
        raise SourceError(f"{file.path}: has text after its list of {scan.number:,} rows")


class _Scanner:
    """JSON values in a text that is read block by block."""

    def __init__(self, text: Any, file: TableFile) -> None:
        self._text, self._file = text, file
        self._buffer, self._position = "", 0
        self._decode = json.JSONDecoder().raw_decode
        self.number = 0

    def more(self) -> bool:
        """Skip white space; return whether anything follows."""
        while True:
            if space := _SPACES.match(self._buffer, self._position):
                self._position = space.end()
            if self._position < len(self._buffer):
                return True
            if not self._fill(_BLOCK):
                return False

    def take(self, sign: str) -> bool:
        """Skip a sign if it is the next; return whether it was."""
        found = self.more() and self._buffer[self._position] == sign
        self._position += found
        return found

    def value(self) -> Any:
        """Return the next value.

        Raises:
            SourceError: it is not JSON.
        """
        size = _BLOCK
        while True:
            try:
                value, self._position = self._decode(self._buffer, self._position)
            except (ValueError, RecursionError) as error:
                # Perhaps it goes on in the next block. A larger one each time: it is read anew.
                if len(self._buffer) - self._position <= _MOST and self._fill(size):
                    size *= 2
                    continue
                limit = f" within {_MOST:,} characters" if self._fill(1) else ""
                raise SourceError(
                    f"{self._file.path}: is not JSON at row {self.number}{limit}: "
                    f"{shown(str(error))}"
                ) from None
            self.number += 1
            return value

    def _fill(self, size: int) -> bool:
        more = self._text.read(size)
        self._buffer, self._position = self._buffer[self._position :] + more, 0
        return bool(more)


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _are_captions(value: Any) -> bool:
    if isinstance(value, str):
        return True
    try:
        found = captions_of(value)
    except BadCell:
        return False
    return isinstance(found, list)
