"""Lines of a text file in the encoding that it is found to have."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from vse_shards.notes import Notes, shown
from vse_shards.sources.tabular.files import CONVERT, peek

_MARKS = {  # the longer first: UTF-32's begins as UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_RUN = re.compile(rb"[\x80-\xff]+")
_SAMPLE = 4096
_LEAST_ZEROS = 0.3  # share of zero bytes in every second place of UTF-16 without a mark


def lines(stream: BinaryIO, name: str, notes: Notes, newline: str = "\n") -> Iterator[str]:
    """Yield the lines of a text with their ends, and say which encoding was found.

    UTF-8 is the rule. UTF-16 and UTF-32 are known by their mark or their zeros. A line that is no
    UTF-8 is taken for Windows-1252 if no line before it proved to be UTF-8 and its letters stand
    as they do in Western words; else its undecodable bytes are kept as lone surrogates.

    Args:
        stream: the file, with `peek`.
        name: name of the file, for messages.
        notes: told the encoding, unless it is UTF-8.
        newline: as `open` takes it.
    """
    encoding = _marked(peek(stream))
    if encoding is not None:
        notes.say(f"{shown(name)} is {encoding.upper()}: it is read as such", encoding)
        yield from io.TextIOWrapper(stream, encoding, newline=newline)
        return
    western: bool | None = None
    told = False
    for line in io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline=newline):
        if line.isascii():
            yield line
            continue
        try:
            raw = line.encode("utf-8", "surrogateescape")
            raw.decode("utf-8")
        except UnicodeError:
            if western is None and _is_western(raw):
                western = True
                notes.say(
                    f"{shown(name)} is not UTF-8: read as Windows-1252; if letters are wrong, "
                    "convert it with iconv",
                    kind="Windows-1252",
                )
            if western:
                line = raw.decode("cp1252", "replace")
            elif not told:
                told = True
                notes.say(f"{shown(name)} has text that is not UTF-8: {CONVERT}", "no UTF-8")
        else:
            western = western or False
        yield line


def blocks(stream: BinaryIO, name: str, notes: Notes) -> io.TextIOWrapper:
    """Return a text that is read in blocks of characters, strictly in its encoding.

    Raises:
        UnicodeDecodeError: while it is read: it is neither UTF-8 nor marked as UTF-16 or UTF-32.
    """
    encoding = _marked(peek(stream))
    if encoding is not None:
        notes.say(f"{shown(name)} is {encoding.upper()}: it is read as such", encoding)
    return io.TextIOWrapper(stream, encoding or "utf-8-sig", newline="\n")


def decoded_head(head: bytes) -> str:
    """Return the first characters of a file, as far as they can be decoded."""
    return head.decode(_marked(head) or "utf-8-sig", "ignore")


def is_damaged(text: str) -> bool:
    """Return whether a line of `lines` has bytes that could not be decoded."""
    return not text.isascii() and any("\udc80" <= sign <= "\udcff" for sign in text)


def _marked(head: bytes) -> str | None:
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    sample = head[:_SAMPLE]
    half = len(sample) // 2
    if half and sample[1::2].count(0) > half * _LEAST_ZEROS > sample[::2].count(0):
        return "utf-16-le"
    if half and sample[::2].count(0) > half * _LEAST_ZEROS > sample[1::2].count(0):
        return "utf-16-be"
    return None


def _is_western(raw: bytes) -> bool:
    """Return whether bytes above 127 stand singly or in pairs, in words of plain letters."""
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:
        return False
    runs = list(_RUN.finditer(raw))
    beside = [raw[max(0, r.start() - 1) : r.start()] + raw[r.end() : r.end() + 1] for r in runs]
    return all(len(run[0]) <= 2 for run in runs) and any(
        sign.isalpha() for near in beside for sign in near.decode("ascii")
    )
