"""Splits of files as a folder declares them, in Energon's ``split.yaml`` or a dataset card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.notes import Notes, shown
from vse_shards.sources.splits import DEFAULT_SPLIT, find_split
from vse_shards.yaml_text import parse_yaml

ENERGON = ".nv-meta/split.yaml"
CARD = "README.md"
_MAX_CARD = 1 << 24  # bytes
_MAX_FILES = 1_000_000  # that a pattern such as shard_{000..999}.tar may stand for
_FRONT = re.compile(rb"\A(?:\xef\xbb\xbf)?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?(?:\n|\Z)", re.DOTALL)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


class FolderSplits:
    """Splits of the files of a folder, as it declares them, else as their names say.

    Args:
        folder: the folder that is the input.
        names: its files, relative to it.
        wanted: those of them that hold samples.
        notes: told of each file's split, and of what is left out.
        images: whether the files are pictures.

    Raises:
        SourceError: a declaration cannot be read, or names tars that are missing.
    """

    def __init__(
        self,
        folder: str,
        names: list[str],
        wanted: list[str],
        notes: Notes,
        *,
        images: bool = False,
    ) -> None:
        self._above, self._notes, self._images = storage.base_name(folder), notes, images
        self._declared: dict[str, str] | None = None
        self.excluded: set[str] = set()
        self._by = ENERGON
        if ENERGON in names:
            self._declared = self._energon(storage.join(folder, ENERGON), wanted)
        elif CARD in names:
            self._by = CARD
            self._declared = _of_card(storage.join(folder, CARD), wanted, notes)

    def of(self, name: str) -> tuple[str, str | None] | None:
        """Return the split of a file and the reason; None if the declaration leaves it out."""
        if self._declared is None:
            return find_split(name, self._above, image=self._images) or (DEFAULT_SPLIT, None)
        if name not in self._declared:
            self._notes.pass_over(f"files that {self._by} names for no split", name)
            return None
        return self._declared[name], f"{self._by} says so"

    def _energon(self, path: str, wanted: list[str]) -> dict[str, str]:
        content = load_yaml(path, _read(path))
        parts = content.get("split_parts") if isinstance(content, dict) else None
        if not isinstance(parts, dict):
            raise SourceError(f"{path}: has no split_parts; correct it, or take it out")
        there, found = set(wanted), dict[str, str]()
        for split, names in parts.items():
            for name in chain.from_iterable(_expanded(one) for one in _texts(names)):
                if name not in there:
                    raise SourceError(
                        f"{path}: split {shown(str(split))} lists {shown(name)}, which is not in "
                        "the folder; correct it, or take it out"
                    )
                if found.setdefault(name, str(split)) != str(split):
                    raise SourceError(
                        f"{path}: lists {shown(name)} for {found[name]} and {split}; correct it"
                    )
        self.excluded = {name for one in _texts(content.get("exclude")) for name in _expanded(one)}
        return {name: split for name, split in found.items() if name not in self.excluded}


def card_splits(path: str, names: list[str], notes: Notes) -> dict[str, str] | None:
    """Return the splits that the dataset card of a folder gives files; None without a card.

    Args:
        path: path or URL of the folder; one of a file has no card.
        names: files of the folder that hold rows, relative to it.
        notes: told of each file's split, and of those that the card names for no split.
    """
    card = storage.join(path, CARD)
    if not (storage.is_folder(path) and storage.is_file(card)):
        return None
    found = _of_card(card, names, notes)
    for name in names:
        if found is not None and name not in found:
            notes.pass_over(f"files that {CARD} names for no split", name)
    return found


@dataclass(frozen=True)
class _Pattern:
    split: str
    parts: tuple[str, ...]


def _of_card(path: str, wanted: list[str], notes: Notes) -> dict[str, str] | None:
    """Return the splits that the first fitting entry of ``configs:`` gives; None without one."""
    front = _FRONT.match(_read(path))
    if front is None:
        return None
    try:
        content = load_yaml(path, front[1])
    except SourceError as error:
        notes.say(f"{CARD} is not read for splits: {shown(str(error).partition(': ')[2])}")
        return None
    configs = content.get("configs") if isinstance(content, dict) else None
    configs = [one for one in configs if isinstance(one, dict)] if isinstance(configs, list) else []
    # As datasets chooses: the default first.
    configs.sort(key=lambda one: not (one.get("default") or one.get("config_name") == "default"))
    for config in configs:
        patterns = list(_patterns(config))
        found = {}
        for name in wanted:
            split = next((p.split for p in patterns if _fits(name.split("/"), p.parts)), None)
            if split is not None:
                found[name] = split
        if found:
            if len(configs) > 1:
                called = shown(str(config.get("config_name")))
                notes.say(f"{CARD} has {len(configs)} configs; splits are those of {called}")
            return found
    return None


def _patterns(config: dict[str, Any]) -> Iterator[_Pattern]:
    files, folder = config.get("data_files"), config.get("data_dir")
    above = folder.strip("/").split("/") if isinstance(folder, str) and folder.strip("/") else []
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    elif not isinstance(files, list) or not all(isinstance(one, dict) for one in files):
        files = [{"split": DEFAULT_SPLIT, "path": files}]
    for entry in files:
        for text in _texts(entry.get("path")):
            parts = [*above, *text.removeprefix("./").strip("/").split("/")]
            # Folders of any depth twice in a row would be tried in all combinations.
            parts = [p for n, p in enumerate(parts) if p != "**" or parts[n - 1 : n] != ["**"]]
            if isinstance(entry.get("split"), str) and parts.count("**") <= 3:
                yield _Pattern(entry["split"], tuple(parts))


def _fits(path: list[str], pattern: tuple[str, ...]) -> bool:
    """Return whether a path fits a pattern; ``**`` is any number of folders."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_fits(path[n:], pattern[1:]) for n in range(len(path) + (len(pattern) == 1)))
    if not path or not fnmatchcase(path[0], pattern[0]):
        return False
    # The name of a folder alone means all in it.
    plain = len(pattern) == 1 and not any(c in pattern[0] for c in "*?[")
    return plain or _fits(path[1:], pattern[1:])


def _expanded(text: str) -> list[str]:
    """Return the names that ``shard_{000..017}.tar`` or ``{a,b}.tar`` stands for."""
    names = [text]
    while True:
        found = _RANGE.search(names[0]) or _CHOICE.search(names[0])
        if found is None:
            return names
        if ".." in found[0]:
            first, last = int(found[1]), int(found[2])
            count = last - first + 1
            width = len(found[1])
            texts: Iterator[str] = (f"{n:0{width}}" for n in range(first, last + 1))
        else:
            count, texts = found[0].count(",") + 1, iter(found[1].split(","))
        if not 0 < count * len(names) <= _MAX_FILES or len(text) > 1000:
            raise SourceError(
                f"{ENERGON}: {shown(text)} stands for {count * len(names):,} files, limit "
                f"{_MAX_FILES:,}; correct it"
            )
        names = [name.replace(found[0], one, 1) for one in texts for name in names]


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str)]


def _read(path: str) -> bytes:
    try:
        return storage.read_limited(path, _MAX_CARD)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error


def load_yaml(path: str, text: bytes) -> Any:
    """Return the content of a YAML text of plain values.

    Raises:
        SourceError: it is not YAML, or too large.
    """
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise SourceError(f"{path}: is not YAML: {error}; correct it, or take it out") from None
