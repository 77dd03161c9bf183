"""Captions under the keys of an object that describes one image, for sources that are no tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vse_shards.errors import SourceError
from vse_shards.notes import shown
from vse_shards.sources.tabular.cells import captions_of
from vse_shards.sources.tabular.columns import caption_field, missing


class CaptionKeys:
    """The keys that ``--column caption=KEY`` chooses; several are separated by commas.

    Args:
        columns: keys by standard name; only captions can be chosen.
        kind: name of the source, for messages.

    Raises:
        SourceError: another name than caption is given.
    """

    def __init__(self, columns: Mapping[str, str] | None, kind: str) -> None:
        self.chosen: tuple[str, ...] = ()
        self._seen: dict[str, None] = {}
        for name, keys in (columns or {}).items():
            if name.lower().removesuffix("s") != "caption":
                raise SourceError(
                    f"--column {shown(f'{name}={keys}')}: --source {kind} takes "
                    "--column caption=KEY alone"
                )
            self.chosen = tuple(key.strip() for key in keys.split(","))

    def captions(self, entry: Mapping[str, Any]) -> list[Any]:
        """Return an object's captions under the chosen keys, else under the common ones.

        Raises:
            BadCell: a list cannot be read, or a conversation has no answer.
        """
        if self.chosen:
            self._seen.update(dict.fromkeys(entry) if len(self._seen) < 1000 else {})
        return as_list(caption_field(entry, self.chosen))

    def check(self, where: str) -> None:
        """Refuse keys that no object had.

        Raises:
            SourceError: there is one.
        """
        for key in self.chosen:
            if key not in self._seen:
                raise missing(key, list(self._seen), where)


def as_list(value: Any) -> list[Any]:
    """Return captions as a list; None is none.

    Raises:
        BadCell: a list cannot be read, or a conversation has no answer.
    """
    if value is None:
        return []
    found = captions_of(value)
    if not isinstance(found, list):
        return [found]
    return [text for one in found for text in (one if isinstance(one, list) else [one])]
