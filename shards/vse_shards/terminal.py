"""Text on a terminal: what would steer it, or turn a line round, is written out."""

from __future__ import annotations

import json
import re
import sys
from typing import Any, TextIO

# Control characters, line separators, marks and embeddings of direction, halves of surrogate
# pairs, and characters that no font has.
_STEERING = re.compile(
    r"[^ -~\u00a0-\u061b\u061d-\u200d\u2010-\u2027\u202f-\u2065\u206a-\ud7ff\uf900-\U0003ffff]"
)

_LONGEST = 4500  # characters of a line: no path of a file system is longer


def printable(text: str) -> str:
    """Return a text in one line that shows as it is; other characters by their numbers."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """Return a text as `printable` does, with its line breaks."""
    return "\n".join(map(printable, text.split("\n")))


def tell(text: str, file: TextIO | None = None) -> None:
    """Print one line, by default to standard output; one of above 4,500 characters in part."""
    text = printable(text)
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]}...{text[-half:]}"
    _write(text, file)


def tell_page(text: str) -> None:
    """Print lines, such as a table, to standard output."""
    _write(printable_lines(text), None)


def tell_json(content: Any, indent: int | None = None) -> None:
    """Print a JSON object to standard output, in ASCII."""
    # The one control character that json leaves as it is.
    _write(json.dumps(content, indent=indent).replace("\x7f", "\\u007f"), None)


def _write(text: str, file: TextIO | None) -> None:
    """Print a text; letters that the terminal lacks are written out too."""
    file = file or sys.stdout
    encoding = file.encoding or "utf-8"  # a file of Python's own need not have one
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)
