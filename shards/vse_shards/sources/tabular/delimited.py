"""Records of a text with delimiters: csv, tsv and their dialects."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from vse_shards import reach
from vse_shards.errors import SourceError
from vse_shards.images import IMAGE_SUFFIXES
from vse_shards.notes import Notes, shown
from vse_shards.sources.base import Problem, is_unicode
from vse_shards.sources.splits import SPLIT_WORDS
from vse_shards.sources.tabular.cells import number
from vse_shards.sources.tabular.columns import Columns
from vse_shards.sources.tabular.files import TableFile
from vse_shards.sources.tabular.rows import Record
from vse_shards.sources.tabular.text import lines

DELIMITERS = ",;|\t"
_MAX_CELL = 16 << 20  # characters; csv's own limit is 128 kB
_SAMPLE = 50  # lines that tell dialect and columns
_NAMES = {",": "commas", ";": "semicolons", "|": "pipes", "\t": "tabs", " ": "spaces"}
_R_HEADER = re.compile(r'"[^"]*"( "[^"]*")+\s*')  # of R's write.table, which separates by spaces
_SEP = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_ESCAPE = re.compile(r'\\(["\\])')
_IMAGE = re.compile(rf"\S.*({'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})(#\d+)?", re.I)
_BUTD = 6  # columns of bottom-up attention's .tsv: image, width, height, number, boxes, features
_CAPTION_WORDS = 2  # on average, of a column without a name that holds captions


@dataclass(frozen=True)
class TextOptions:
    """Options of texts with delimiters.

    Attributes:
        header: ``none`` if the first line is a row; None finds out.
        quoting: ``none`` if quotes are part of the text; None reads them as csv does.
        tabs: whether tabs are preferred where the first line has other delimiters too.
    """

    header: str | None = None
    quoting: str | None = None
    tabs: bool = False


def names_columns(text: str, columns: Columns) -> bool:
    """Return whether the first line of a text is a header with all columns that are needed."""
    first = text.partition("\n")[0]
    return any(sign in first and columns.fit(_split(first, sign)) for sign in DELIMITERS)


class Delimited:
    """A text with delimiters.

    Args:
        stream: the file.
        file: its names.
        columns: choice of the columns that are read.
        notes: told dialect, encoding and header.
        options: the user's options.
    """

    def __init__(
        self,
        stream: BinaryIO,
        file: TableFile,
        columns: Columns,
        notes: Notes,
        options: TextOptions,
    ) -> None:
        self._file, self._columns, self._notes, self._options = file, columns, notes, options
        self._lines = lines(stream, file.name, notes, newline="")
        self._taken: list[str] = []  # the lines of the current record
        self._number = 0  # of the last line that was taken
        self._escaped = False
        self._quoting: Any = csv.QUOTE_MINIMAL if options.quoting is None else csv.QUOTE_NONE
        self._width = 0
        self._positions: dict[str, tuple[int, ...]] = {}
        self._needed = 0  # the last position that is read
        self._image: str | None = None  # of the last record

    def records(self) -> Iterator[Record | Problem]:
        """Yield the records in their order, and problems for rows that cannot be read.

        Raises:
            SourceError: the file is empty, lacks a column, or has quotes that swallow rows.
        """
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))
        head = list(itertools.islice(self._lines, _SAMPLE))
        if head and (found := _SEP.fullmatch(head[0])):
            self._delimiter, self._number = found[1], 1
            self._notes.say(
                f"{shown(self._file.name)} names its delimiter: {shown(head[0].strip())}",
                kind="sep=",
            )
            head = head[1:]
        else:
            self._delimiter = self._find_delimiter(head)
        if not head or not any(self._cells(head[0])):
            raise SourceError(f"{self._file.path}: is empty; its first line must name columns")
        if self._choose_columns(head):
            head, self._number = head[1:], self._number + 1
        self._lines = itertools.chain(head, self._lines)
        yield from self._rows()

    def _find_delimiter(self, head: list[str]) -> str:
        """Return the delimiter by which the first line names columns, else the most regular."""
        first = head[0] if head else ""
        if _R_HEADER.fullmatch(first) and self._columns.fit(_split(first, " ")):
            self._notes.say(f"{shown(self._file.name)} is separated by {_NAMES[' ']}", "spaces")
            return " "
        ranked = sorted(DELIMITERS, key=first.count, reverse=True)
        if self._options.tabs and "\t" in first:
            ranked.sort(key="\t".__ne__)
        sign = next(
            (d for d in ranked if d in first and self._columns.fit(_split(first, d))),
            ranked[0] if self._options.tabs and "\t" in first else _most_regular(head, ranked),
        )
        usual = "\t" if self._options.tabs else ","
        if sign != usual and sign in first:
            self._notes.say(f"{shown(self._file.name)} is separated by {_NAMES[sign]}", sign)
        return sign

    def _cells(self, line: str) -> list[str]:
        return _split(line, self._delimiter, self._quoting)

    def _choose_columns(self, head: list[str]) -> bool:
        """Choose the columns; return whether the first line names them."""
        names, where = self._cells(head[0]), self._file.path
        self._width = len(names)
        header = self._options.header
        if header is None and not self._columns.fit(names) and any(map(_is_data, names)):
            header = "none"
            self._notes.say(
                f"{shown(self._file.name)} has no header (its first line has "
                f"{shown(next(filter(_is_data, names)))}): columns are 1 to {self._width}",
                kind="no header",
            )
        if header != "none":
            chosen = self._columns.choose(names, where)
            if self._are_rows_named(head[1:], names.index(chosen["image"][0])):
                names = ["", *names]
                self._width = len(names)
            twice = {name for name in names if names.count(name) > 1}
            if found := twice & {column for columns in chosen.values() for column in columns}:
                self._notes.say(f"column {shown(min(found))} is there twice: the first is read")
        else:
            names = [str(position + 1) for position in range(self._width)]
            sample = [cells for line in head if len(cells := self._cells(line)) == self._width]
            chosen = self._columns.choose(names, where, self._guess(sample, names))
        self._positions = {
            name: tuple(names.index(column) for column in columns)
            for name, columns in chosen.items()
        }
        self._needed = max(map(max, self._positions.values()))
        return header != "none"

    def _are_rows_named(self, rows: list[str], image: int) -> bool:
        """Return whether every row has a name before its cells, as R's write.table writes it.

        Then images stand one column behind ``image``, their own; in rows with a delimiter too much
        they do not.
        """
        found = [cells for line in rows if line.strip() and (cells := self._cells(line))]
        named = bool(found) and all(
            len(cells) == self._width + 1 and _is_image(cells[image + 1]) > _is_image(cells[image])
            for cells in found
        )
        if named:
            self._notes.say(
                f"{shown(self._file.name)} has a cell more in its rows than in its header, the "
                "first, as R writes the names of rows: it is passed over",
                kind="names of rows",
            )
        return named

    def _guess(self, sample: list[list[str]], names: list[str]) -> dict[str, tuple[str, ...]]:
        """Return the columns of images and captions by the cells in them.

        Raises:
            SourceError: several columns can be either.
        """
        named = self._columns.named(names)
        taken = {column for columns in named.values() for column in columns}
        free = [n for n in range(len(names)) if names[n] not in taken]
        images = [n for n in free if all(map(_is_image, (cells[n] for cells in sample)))]
        texts = [n for n in free if n not in images and _is_text([c[n] for c in sample])]
        if len(free) == 2 and not texts:
            texts = [n for n in free if n not in images][:1]
        guessed = {"image": images, "caption": texts}
        for name, positions in guessed.items():
            if name not in named and len(positions) != 1:
                raise self._unclear(name, [names[n] for n in positions])
        rest = [n for n in free if n not in images + texts]
        guessed["split"] = [n for n in rest if {c[n].lower() for c in sample} <= SPLIT_WORDS][:1]
        return {name: tuple(names[n] for n in positions) for name, positions in guessed.items()}

    def _unclear(self, name: str, columns: list[str]) -> SourceError:
        if self._width == _BUTD and not columns:
            return SourceError(
                f"{self._file.path}: has no column that looks like {name}; features of bottom-up "
                "attention are read with --source butd"
            )
        what = f"columns {', '.join(columns)} can each be" if columns else "no column looks like"
        return SourceError(
            f"{self._file.path}: has no header, and {what} {name}; say it with --column, such as "
            "--column image=1 --column caption=2"
        )

    def _feed(self) -> Iterator[str]:
        for line in self._lines:
            self._number += 1
            self._taken.append(line)
            yield _ESCAPE.sub(_doubled, line) if self._escaped else line

    def _reader(self, first: list[str]) -> Any:
        return csv.reader(
            itertools.chain(first, self._feed()),
            delimiter=self._delimiter,
            quoting=self._quoting,
            strict=True,
        )

    def _rows(self) -> Iterator[Record | Problem]:
        reader, again = self._reader([]), False
        while True:
            if not again:
                self._taken.clear()
            again = False
            try:
                cells = next(reader, None)
            except csv.Error as error:
                again = self._begin_escapes()
                if again:
                    reader = self._reader([_ESCAPE.sub(_doubled, line) for line in self._taken])
                else:
                    yield self._misquoted(error)
                continue
            if cells is None:
                return
            if len(self._taken) > 1:
                self._refuse_swallowed()
            if cells:
                yield self._record(cells)

    def _begin_escapes(self) -> bool:
        r"""Return whether the current record is read right with Spark's ``\"`` in place of ``""``.

        If so, all further lines are read so.
        """
        text = [_ESCAPE.sub(_doubled, line) for line in self._taken]
        if self._escaped or text == self._taken:
            return False
        try:
            next(csv.reader(text, delimiter=self._delimiter, strict=True))
        except csv.Error:
            return False
        self._escaped = True
        self._notes.say(
            f'{shown(self._file.name)} has \\" for a quote within a cell, as Spark writes it: it '
            f"is read so from line {self._number:,} on",
            kind="escapes",
        )
        return True

    def _misquoted(self, error: csv.Error) -> Problem:
        """Return the problem of a line with a quote in a wrong place.

        Raises:
            SourceError: the quote swallows further rows.
        """
        self._refuse_swallowed()
        if "expected after" not in str(error):
            raise self._swallows("is not closed")
        detail = "a quoted cell goes on after its end; --quoting none reads quotes as text"
        return Problem(self._origin(), None, None, "malformed row", detail)

    def _refuse_swallowed(self) -> None:
        if any(map(self._is_row, self._taken[1:])):
            raise self._swallows("holds the rows after it")

    def _swallows(self, what: str) -> SourceError:
        first = self._number - len(self._taken) + 1
        return SourceError(
            f"{self._file.path}: line {first:,}: a cell that begins with a quote {what}; if quotes "
            "are part of the text, pass --quoting none, else correct the line"
        )

    def _is_row(self, line: str) -> bool:
        """Return whether a line within a quoted cell is a row of its own."""
        cells = line.rstrip("\r\n").split(self._delimiter)
        if not len(cells) >= self._width > 1:
            return False
        image = cells[self._positions["image"][0]].strip(' "')
        if _is_image(image):
            return True
        # Images may be named without a suffix.
        bare = self._image is not None and not _is_image(self._image)
        return bare and bool(re.fullmatch(r"\S*[\d/]\S*", image))

    def _origin(self) -> str:
        return f"{self._file.name} line {self._number}"

    def _record(self, line: list[str]) -> Record | Problem:
        if len(line) <= self._needed:
            detail = f"has {len(line)} cells; the header names more"
            return Problem(self._origin(), None, None, "malformed row", detail)
        if len(line) > self._width and any(cell.strip() for cell in line[self._width :]):
            detail = (
                f"has {len(line)} cells, the first line {self._width}; text that holds "
                f"{_NAMES.get(self._delimiter, 'the delimiter')} must be quoted"
            )
            return Problem(self._origin(), None, None, "malformed row", detail)
        cells: dict[str, Any] = {}
        for name, positions in self._positions.items():
            found: list[Any] = [line[position].strip() for position in positions]
            if not all(map(is_unicode, found)):
                return Problem(self._origin(), None, None, "malformed row", "not UTF-8")
            if name.endswith("_id"):
                found = list(map(number, found))
            cells[name] = found[0] if len(found) == 1 else found
        self._image = cells["image"]
        return Record(self._origin(), cells, len(self._positions["caption"]) > 1)


def _split(line: str, delimiter: str, quoting: Any = csv.QUOTE_MINIMAL) -> list[str]:
    try:
        cells = next(csv.reader([line], delimiter=delimiter, quoting=quoting), [])
    except csv.Error:
        cells = line.split(delimiter)
    return [cell.strip() for cell in cells]


def _most_regular(head: list[str], ranked: list[str]) -> str:
    """Return the delimiter that cuts all lines into as many cells, tabs before others."""
    filled = [line for line in head if line.strip()]
    counts = {sign: {len(_split(line, sign)) for line in filled} for sign in ranked}
    even = [sign for sign in ranked if len(counts[sign]) == 1 and counts[sign] != {1}]
    return "\t" if "\t" in even else (even or ranked)[0]


def _doubled(found: re.Match[str]) -> str:
    return '""' if found[1] == '"' else "\\"


def _is_image(cell: str) -> bool:
    """Return whether a cell names an image by its suffix, or is a web address."""
    return bool(_IMAGE.fullmatch(cell)) or reach.is_web(cell.lower())


def _is_text(cells: list[str]) -> bool:
    return sum(len(cell.split()) for cell in cells) >= _CAPTION_WORDS * len(cells)


def _is_data(cell: str) -> bool:
    """Return whether a cell cannot be the name of a column."""
    return _is_image(cell) or cell.replace(".", "", 1).isdecimal()
