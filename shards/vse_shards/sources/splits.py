"""The words that name a split, and where they count."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any, NamedTuple

from vse_shards.notes import Notes, shown

_TEST_WORDS = ("test", "testall", "testdev")
SPLIT_WORDS = frozenset(
    ("train", "training", "restval", "val", "valid", "validation", "dev", "eval", *_TEST_WORDS)
)
DEFAULT_SPLIT = "train"
# Letters of any script stay together: "evaluation" and "testé" are no split words.
_WORD = re.compile(r"[^\W\d_]+")
_YEAR = re.compile(r"(19|20)\d\d(?!\d)")


class _Part(NamedTuple):
    """Split words of one part of a path.

    Attributes:
        words: in their order, as ``find_split`` gives them.
        alone: whether the part has no other letters.
        dated: whether a year is attached to the last of the words.
    """

    words: tuple[str, ...]
    alone: bool
    dated: bool


def find_split(path: str, folder: str = "", *, image: bool = False) -> tuple[str, str] | None:
    """Return the split that a path names, and why.

    A split word counts anywhere between delimiters (all that is no letter), in any case. The file's
    name counts before its folders; of these, one that is nothing but a split word (``val2014``)
    counts before one that contains it (``bullet_train``), then the nearest. Of several words in a
    name the last counts: ``train-dev`` is ``dev``.

    Args:
        path: path of a file relative to the input, or the name of a file that is the input.
        folder: name of the folder that is the input. It counts last, and only if it is nothing but
            a split word: people keep data in folders such as ``test-run``.
        image: whether the file is a picture, whose name may say what it shows. ``val_0042.jpg`` and
            ``COCO_val2014_42.jpg`` count, ``train.jpg`` and ``crash-test.jpg`` do not.

    Returns:
        The word in lower case as written, but ``train`` for ``training``, and the reason, such as
        ``"validation" in its name``; None if no part names a split.
    """
    *folders, name = path.split("/")
    own = _part(os.path.splitext(name)[0] if image else name)
    if own.words and (not image or own.dated or (own.alone and any(map(str.isdigit, name)))):
        return own.words[-1], f"{_quoted(own)} in its name"
    return _of_folders("/".join(folders), folder)


@lru_cache(maxsize=4096)
def _of_folders(folders: str, outer: str) -> tuple[str, str] | None:
    """Return the split that the folders of a file name, and why."""
    named = [(part, name) for name in reversed(folders.split("/")) if (part := _part(name)).words]
    top = _part(outer)
    if top.alone:
        named.append((top, outer))
    if not named:
        return None
    part, name = next((one for one in named if one[0].alone), named[0])
    why = f"{_quoted(part)} in folder {shown(name)}"
    other = next((n for p, n in named if p.words[-1] != part.words[-1]), None)
    if other is not None:
        why += f", which counts before folder {shown(other)}"
    return part.words[-1], why


def named_by_folder(path: str) -> tuple[str, str] | None:
    """Return the split of a member of an archive, by the nearest folder that is a split word."""
    return _alone(path.rpartition("/")[0])


@lru_cache(maxsize=4096)
def _alone(folders: str) -> tuple[str, str] | None:
    for name in reversed(folders.split("/")):
        part = _part(name)
        if part.alone:
            return part.words[-1], f"{_quoted(part)} in its folder {shown(name)}"
    return None


class FileSplit:
    """Splits of the rows of one file, which may name their own.

    Args:
        name: name of the file.
        notes: told of each split once.
        declared: split of the file and who says so, in place of what its name says.
    """

    def __init__(self, name: str, notes: Notes, declared: tuple[str, str] | None = None) -> None:
        self._name, self._notes = name, notes
        found = declared or find_split(name)
        self._default = found[0] if found else DEFAULT_SPLIT
        self._why = found[1] if found else None
        self._seen: set[tuple[str, bool]] = set()

    def of(self, named: Any) -> Any:
        """Return a row's own split if it names one, else the file's, else ``train``."""
        own = named is not None and named != ""
        split = named if own else self._default
        if isinstance(split, str) and (split, own) not in self._seen:
            self._seen.add((split, own))
            self._notes.split(split, self._name, "its rows name it" if own else self._why)
        return split


def _part(name: str) -> _Part:
    words: list[str] = []
    alone, dated = True, False
    before, end, counted = "", -1, False
    for found in _WORD.finditer(name):
        word = found[0].lower()
        # "test-dev" and "rest_val" are written with and without a delimiter.
        joined = before + word if found.start() - end == 1 else ""
        if joined in SPLIT_WORDS:
            if counted:
                words.pop()
            word = joined
        elif before and not counted:
            alone = False
        before, end, counted = word, found.end(), word in SPLIT_WORDS
        if counted:
            words.append("train" if word == "training" else word)
            dated = bool(_YEAR.match(name, end))
    return _Part(tuple(words), bool(words) and alone and counted, dated)


def _quoted(part: _Part) -> str:
    words = dict.fromkeys(part.words)
    if len(words) == 1:
        return f'"{part.words[-1]}"'
    first = next(word for word in words if word != part.words[-1])
    return f'"{part.words[-1]}" after "{first}"'
