"""Columns of a table: their common names, and the choice of those that are read."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from vse_shards.errors import SourceError
from vse_shards.notes import Notes, shown

# Common names of each column, the standard name first: those of open_clip (filepath, title),
# datasets (file_name, text), img2dataset (jpg, url), Karpathy (sentids), LLaVA (conversations).
ALIASES: dict[str, tuple[str, ...]] = {
    "image": (
        *("image", "image_path", "image_name", "file_name", "filename", "filepath", "path"),
        *("file_path", "img_path", "img_name", "image_file", "image_filename", "image_file_name"),
        *("img", "img_file", "file", "images", "jpg", "jpeg", "png", "webp", "image_bytes"),
        *("url", "image_url"),
    ),
    "caption": (
        *("captions", "caption", "text", "comment", "sentence", "sentences", "comments", "texts"),
        *("raw", "title", "prompt", "description", "txt", "conversations", "messages"),
    ),
    "split": ("split",),
    "image_id": ("image_id", "imgid", "img_id", "imageid"),
    "caption_id": ("caption_id", "caption_ids", "sentid", "sentids"),
}
_REQUIRED = ("image", "caption")
_SHOWN = 12  # columns that a message lists
_NUMBERED = re.compile(r"(?:caption|text|sentence|comment)s?[_ -]?\d+", re.IGNORECASE)


class Columns:
    """The columns of a source's tables that are read, by their standard names.

    Args:
        named: columns that ``--column NAME=COLUMN`` gives; several are separated by commas.
        notes: told which columns are read where they have other names.

    Raises:
        SourceError: a NAME is not one of `ALIASES`.
    """

    def __init__(self, named: Mapping[str, str], notes: Notes) -> None:
        self._named: dict[str, str] = {}
        self._notes = notes
        for name, column in named.items():
            standard = name.lower().removesuffix("s")
            if standard not in ALIASES:
                raise SourceError(
                    f"--column {shown(f'{name}={column}')}: {shown(name)!r} is not a known column; "
                    f"choose from {', '.join(ALIASES)}"
                )
            self._named[standard] = column

    def named(self, found: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the columns that options name, by standard name.

        Raises:
            KeyError: one of them is not in ``found``; the argument is its name.
        """
        chosen = {name: _existing(columns, found) for name, columns in self._named.items()}
        for name, columns in chosen.items():
            if len(columns) > 1 and not name.startswith("caption"):
                raise SourceError(
                    f"--column {name}={shown(self._named[name])}: only captions and their ids can "
                    "be in several columns"
                )
        return chosen

    def candidates(self, found: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the columns that can be each standard name, the most likely first.

        Columns with a common name count first as they are written, then in other case or with
        spaces in place of underscores.
        """
        spelled: dict[str, str] = {}
        for column in found:
            spelled.setdefault(column.strip().lower().replace(" ", "_").replace("-", "_"), column)
        choices = {}
        for name, aliases in ALIASES.items():
            exact = [alias for alias in aliases if alias in found]
            others = [spelled[a] for a in aliases if a in spelled and spelled[a] not in exact]
            choices[name] = tuple(exact + others)
        return choices

    def fit(self, found: Sequence[str]) -> bool:
        """Return whether a table of these columns has all that is required or named."""
        try:
            named = self.named(found)
        except KeyError:
            return False
        choices = self.candidates(found)
        return all(name in named or choices[name] for name in _REQUIRED)

    def choose(
        self, found: Sequence[str], where: str, guessed: Mapping[str, tuple[str, ...]] | None = None
    ) -> dict[str, tuple[str, ...]]:
        """Return the columns that are read of a table, by standard name.

        Args:
            found: the table's columns.
            where: name of the table, for messages.
            guessed: columns of a table without a header.

        Raises:
            SourceError: a required or named column is missing.
        """
        try:
            chosen = self.named(found)
        except KeyError as error:
            raise missing(error.args[0], found, where) from None
        for name, columns in (guessed or self.candidates(found)).items():
            if name not in chosen and columns:
                chosen[name] = columns if guessed else columns[:1]
        for name in _REQUIRED:
            if name not in chosen:
                raise missing(name, found, where)
        self.tell(chosen, found)
        return chosen

    def tell(self, chosen: Mapping[str, tuple[str, ...]], found: Sequence[str]) -> None:
        """Say once which columns are read, if they have other names than the standard ones."""
        plain = {name: (name, f"{name}s") for name in ALIASES}
        other = [
            f"{name} from {shown(', '.join(columns))}"
            for name, columns in chosen.items()
            if name not in self._named and not set(columns) <= set(plain[name])
        ]
        more = [c for c in numbered(found) if c not in chosen.get("caption", ())]
        if more and "caption" not in self._named:
            every = ",".join([*chosen.get("caption", ()), *more])
            self._notes.say(
                f"{shown(', '.join(more))} may hold captions too, and are not read: read them "
                f"with --column {shlex.quote(f'caption={every}')}"
            )
        if not other:
            return
        read = {column for columns in chosen.values() for column in columns}
        left = [c for columns in self.candidates(found).values() for c in columns if c not in read]
        unread = f" ({shown(', '.join(left))} is not read)" if left else ""
        self._notes.say(f"read {'; '.join(other)}{unread}; --column NAME=COLUMN chooses others")

    def missing_named(self, found: Sequence[str], where: str) -> SourceError | None:
        """Return the error of a named column that is not in ``found``, None if all are."""
        try:
            self.named(found)
        except KeyError as error:
            return missing(error.args[0], found, where)
        return None


def numbered(found: Sequence[str]) -> list[str]:
    """Return columns such as ``caption_0`` and ``caption_1``, of which each has a caption."""
    return [column for column in found if _NUMBERED.fullmatch(column)]


def missing(name: str, found: Sequence[str], where: str) -> SourceError:
    """Return the error of a missing column, with the nearest that is there."""
    several = numbered(found)
    if name == "caption" and len(several) > 1:
        return SourceError(
            f"{where}: has no column 'caption', but {len(several)} numbered ones; read them with "
            f"--column {shlex.quote('caption=' + ','.join(several))}"
        )
    near = difflib.get_close_matches(name, found, 1)
    hint = f"; did you mean {shown(near[0])!r}? It has" if near else "; it has"
    listed = ", ".join(shown(column) for column in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    return SourceError(
        f"{where}: has no column {shown(name)!r}{hint} {listed or 'none'}{more}; "
        "name it with --column, such as --column image=COLUMN"
    )


def caption_field(entry: Mapping[str, Any], chosen: Sequence[str]) -> Any:
    """Return the captions of an object, as text, list or conversation; None if it has none.

    Args:
        entry: the object.
        chosen: keys that hold captions; empty takes the first common name that has a value.
    """
    if chosen:
        values = [entry.get(key) for key in chosen]
        return values[0] if len(values) == 1 else [value for value in values if value is not None]
    values = [entry.get(key) for key in ALIASES["caption"]]
    return next((value for value in values if value is not None), None)


def _existing(columns: str, found: Sequence[str]) -> tuple[str, ...]:
    """Return one or several columns, given as text.

    Raises:
        KeyError: one of them is not in ``found``.
    """
    if columns in found:
        return (columns,)
    parts = tuple(part.strip() for part in columns.split(","))
    for part in parts:
        if part not in found:
            raise KeyError(part)
    return parts
