"""Cells of a record, and their conversion: lists, ids, images in cells, conversations."""

from __future__ import annotations

import ast
import base64
import binascii
import io
import re
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any

from vse_shards.json_text import parse_json
from vse_shards.notes import shown
from vse_shards.sources.base import is_unicode
from vse_shards.sources.tabular.columns import caption_field

_LIST = re.compile(r"\[\s*(\]|\{?\s*['\"])")  # captions such as "[cat] on a mat" are no lists
_CLOSED = re.compile(r"['\"]\s*\]")
_NUMBERS = re.compile(r"\[[\s\d,-]*\]")
_MAX_ID = 18  # digits that always fit 64 bits
_IN_BASE64 = ("/9j/", "_9j_", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk")  # JPEG, PNG, WebP, GIF, BMP
_DATA = re.compile(r"data:image/[\w.+-]+;base64,")
_URL_SIGNS = str.maketrans("-_", "+/")
_LEAST_BASE64 = 200  # characters; the smallest JPEG has more


class BadCell(Exception):
    """A cell that cannot be used; the message says why."""


def is_empty(value: Any) -> bool:
    """Return whether a cell has no value; pandas writes NaN for None."""
    return value is None or value == "" or (isinstance(value, float) and value != value)


def is_path(cell: Any) -> bool:
    """Return whether a cell can be a file name."""
    return isinstance(cell, str) and bool(cell) and is_unicode(cell) and "\0" not in cell


def to_id(value: Any) -> Any:
    """Return an id as it was before a table turned it into text or a float."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def number(cell: str) -> str | int:
    """Convert an id of a text file to an integer if it is one."""
    if cell.isdecimal() and len(cell) <= _MAX_ID and str(int(cell)) == cell:
        return int(cell)
    return cell


def listed(cell: Any) -> Any:
    """Return the list that a cell's text holds, any other cell unchanged.

    JSON, Python's repr and numpy's are known: ``["a", "b"]``, ``['a', 'b']``, ``['a' 'b']``.

    Raises:
        BadCell: the text begins as a list and cannot be read as one.
    """
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    # A list that was cut has no end; in '["Untitled"], oil on canvas' it is not the cell's.
    if (
        not text.startswith("[")
        or not _LIST.match(text)
        or (not text.endswith("]") and _CLOSED.search(text))
    ):
        return cell
    try:
        found = parse_json(text, surrogates=True)
    except ValueError:
        found = _python_list(text)
    if not isinstance(found, list):
        raise BadCell(
            f"{shown(text)} begins as a list and is none; was it cut, or is it a caption with "
            "brackets and quotes?"
        )
    return found


def _python_list(text: str) -> Any:
    """Return a list in Python's or numpy's notation, None if it is neither."""
    try:
        found = ast.literal_eval(text)
        # numpy writes no commas, and Python joins neighbouring strings to one.
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        strings = [ast.literal_eval(t.string) for t in tokens if t.type == tokenize.STRING]
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
        return None
    simple = isinstance(found, list) and all(isinstance(entry, str) for entry in found)
    return strings if simple and len(strings) != len(found) else found


def captions_of(value: Any, chosen: Sequence[str] = ()) -> Any:
    """Return captions in the shape that `usable_captions` takes.

    A text is one caption or a list in text. Of a conversation the first answer is the caption. An
    object has its text under any common name of a caption.

    Raises:
        BadCell: a list cannot be read, or a conversation has no answer.
    """
    value = listed(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not any(isinstance(entry, dict) for entry in value):
        return value
    if any(isinstance(entry, dict) and _role(entry) for entry in value):
        return [_first_answer(value)]
    return [_caption(entry) for entry in value]


def _caption(entry: Any) -> Any:
    text = caption_field(entry, ()) if isinstance(entry, dict) and "text" not in entry else None
    if text is None:
        return entry
    caption_id = next((entry[k] for k in ("id", "sentid", "caption_id") if k in entry), None)
    return {"text": text, "id": caption_id}


def _role(turn: Mapping[str, Any]) -> Any:
    """Return the speaker of a turn: LLaVA's ``from``, or ``role`` of chats."""
    if "from" in turn and "value" in turn:
        return turn["from"]
    return turn.get("role") if "content" in turn else None


def _first_answer(turns: Sequence[Any]) -> Any:
    for turn in turns:
        if isinstance(turn, dict) and _role(turn) in ("gpt", "assistant", "model", "bot"):
            return turn.get("value", turn.get("content"))
    raise BadCell("the conversation has no turn of gpt or assistant, whose first is the caption")


def ids_of(value: Any, texts: Any) -> Any:
    """Return the ids of captions: a list where there are several captions, else None or one."""
    if value is None:
        return None
    if isinstance(value, str) and _NUMBERS.fullmatch(value.strip()):
        value = [number(part) for part in re.findall(r"-?\d+", value)]
    value = listed(value)
    if is_empty(value):
        return None
    if isinstance(value, list):
        return [to_id(entry) for entry in value]
    return [to_id(value)] if not isinstance(texts, list) or len(texts) == 1 else value


def image_bytes(cell: Any) -> tuple[bytes | None, str | None]:
    """Return the image that a cell holds, and its name; both None if it is no image.

    Known are the structs ``{bytes, path}`` of datasets, raw bytes, base64 and data URLs.
    """
    if isinstance(cell, dict) and "bytes" in cell:
        name = cell.get("path")
        data = cell["bytes"]
        if isinstance(data, str):
            data = _from_base64(data)
        name = name if is_path(name) else None
        return (data, name) if isinstance(data, bytes) else (None, name)
    if isinstance(cell, str):
        return _from_base64(cell), None
    return (cell, None) if isinstance(cell, bytes) else (None, None)


def _from_base64(text: str) -> bytes | None:
    if not text.startswith("data:") and (
        len(text) < _LEAST_BASE64 or not text.startswith(_IN_BASE64)
    ):
        return None
    prefix = _DATA.match(text)
    # Written in lines, without padding, or with the signs of URLs, as other encoders do.
    digits = text[prefix.end() :] if prefix else text
    if "\n" in digits:
        digits = "".join(digits.split())
    digits = digits.rstrip("=").translate(_URL_SIGNS)
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
