"""Lines about a source that its owner must know: splits that were found, and what was assumed."""

from __future__ import annotations

from dataclasses import dataclass

from vse_shards.terminal import printable

MAX_NAME = 80  # characters of a name, cell or hash in any message


@dataclass
class _Found:
    """Files of one split: their number, and why the first is of it."""

    files: int
    first: str
    why: str | None
    unnamed: int = 0  # of the files, those that name no split
    first_unnamed: str = ""


class Notes:
    """Notes of one reading of a source, each said once, in the order in which they came up."""

    def __init__(self) -> None:
        self._said: dict[str, bool] = {}  # whether others of its kind came up
        self._first: dict[str, str] = {}  # line by kind
        self._splits: dict[str, _Found] = {}
        self._passed: dict[str, tuple[int, str]] = {}

    def say(self, line: str, kind: str | None = None) -> None:
        """Add a line, unless it was said before.

        Args:
            line: the line.
            kind: name of the lines of which there may be one a file or a key: the first is said,
                with a word that others came up.
        """
        first = line if kind is None else self._first.setdefault(kind, line)
        self._said[first] = self._said.get(first, False) or first != line

    def split(self, split: str, file: str, why: str | None) -> None:
        """Count a file as one of a split; call it once a file.

        Args:
            split: name of the split.
            file: the file, relative to the input.
            why: reason, such as ``"val" in its name``; None if nothing names a split, and
                ``split`` is the default.
        """
        found = self._splits.setdefault(split, _Found(0, file, why))
        found.files += 1
        if why is None:
            found.unnamed += 1
            found.first_unnamed = found.first_unnamed or file
        if found.why is None and why is not None:
            found.first, found.why = file, why

    def pass_over(self, kind: str, file: str) -> None:
        """Count a file that is no part of the dataset.

        Args:
            kind: what such files are, plural, such as ``files that systems leave behind``.
            file: the file, relative to the input.
        """
        count, first = self._passed.get(kind, (0, file))
        self._passed[kind] = count + 1, first

    def lines(self, name: str) -> list[str]:
        """Return a line per split and per kind of passed-over files, then what else was said.

        Args:
            name: name of the input, for the line that says that no split was recognised.
        """
        if self._splits and all(found.why is None for found in self._splits.values()):
            splits = [
                f"no split is named in {shown(name)}: all rows are {', '.join(self._splits)}; "
                f"carve images to validate on out with --split val=5%, rename with --split "
                f"NAME={next(iter(self._splits))}, or name splits in a file, a folder or a column"
            ]
        else:
            splits = [
                f"split {shown(split)}: {found.files:,} file{'s' * (found.files != 1)}, the first "
                f"{shown(found.first)} ({found.why or 'no split is named in it'})"
                for split, found in self._splits.items()
            ]
            splits += [
                f"of these {counted(found.unnamed, 'file')} name{'s' * (found.unnamed == 1)} no "
                f"split, the first {shown(found.first_unnamed)}: {shown(split)} is assumed"
                for split, found in self._splits.items()
                if found.unnamed and found.why is not None
            ]
        passed = [
            f"passed over {count:,} {kind}, the first {shown(first)}"
            for kind, (count, first) in self._passed.items()
        ]
        said = [line + " (the first of several)" * more for line, more in self._said.items()]
        return [*splits, *passed, *said]


def shown(text: str) -> str:
    """Return a text as messages show it: printable, and at most ``MAX_NAME`` characters."""
    text = printable(text)
    if len(text) <= MAX_NAME:
        return text
    half = (MAX_NAME - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def counted(number: int, thing: str) -> str:
    """Return a number with its thing, in the plural unless it is one."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
