"""JSON that others wrote, read with one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vse_shards.plain_files import MOST_BYTES, read_plain

MOST_DEPTH = 100  # of lists and objects in each other
MOST_EXACT = 1 << 53  # not every reader keeps larger numbers exactly


def parse_json(text: str | bytes, *, surrogates: bool = False) -> Any:
    """Return the content of a JSON text.

    Args:
        text: UTF-8, if bytes.
        surrogates: whether texts may hold halves of surrogate pairs, which no file can store; for
            a caller that checks its texts itself.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested deeper than `MOST_DEPTH`, or holds half a
            surrogate pair.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested too deeply, limit {MOST_DEPTH}") from None
    if isinstance(text, str):
        opened = text.count("[") + text.count("{")
        escaped = "\\ud" in text or "\\uD" in text
    else:
        opened = text.count(b"[") + text.count(b"{")
        escaped = b"\\ud" in text or b"\\uD" in text
    if opened > MOST_DEPTH or (escaped and not surrogates):
        _check(content, surrogates=surrogates or not escaped)
    return content


def read_json(path: Path | str, most: int = MOST_BYTES) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: as of `parse_json`; or it is no regular file, or has more than ``most`` bytes.
    """
    return parse_json(read_plain(path, most))


def mapping(content: Any) -> dict[str, Any]:
    """Return ``content``, an object.

    Raises:
        ValueError: it is a list or a value.
    """
    if not isinstance(content, dict):
        raise ValueError(f"is no object but {type(content).__name__}")
    return content


def _check(content: Any, *, surrogates: bool) -> None:
    level, depth = [content], 0
    while level:
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
                inner += () if surrogates else value.keys()
            elif isinstance(value, list):
                inner += value
            elif not surrogates and isinstance(value, str):
                _check_text(value)
        level, depth = inner, depth + 1
        if depth > MOST_DEPTH + 1:
            raise ValueError(f"it is nested too deeply, limit {MOST_DEPTH}")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half a surrogate pair, {text[error.start]!a}") from None
