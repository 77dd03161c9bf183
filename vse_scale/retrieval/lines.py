"""The lines of a ``.jsonl`` file, each parsed when it is asked for."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from vse_scale.errors import DatasetError
from vse_scale.retrieval.saved import checked_line
from vse_shards.plain_files import open_plain

_BLOCK = 1 << 26  # bytes that are looked through at a time
_KEPT = 4096  # lines


class Lines(Sequence[dict[str, Any]]):
    """The objects of a ``.jsonl`` file of saved embeddings; 8 bytes a line are held.

    Args:
        path: of the file.

    Raises:
        DatasetError: it is missing; a line that is damaged, when it is asked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with open_plain(path) as file:
                size = file.seek(0, 2)
                # An empty file cannot be mapped.
                self._bytes: mmap.mmap | bytes = (
                    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
                )
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:  # no regular file
            raise DatasetError(f"{path}: cannot be read ({error})") from error
        self._ends = self._find_ends()
        self._line = lru_cache(_KEPT)(self._parse)

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self._ends)

    @overload
    def __getitem__(self, row: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, row: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, row: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the object of a line, or of several."""
        if isinstance(row, slice):
            return [self._line(number) for number in range(len(self))[row]]
        return self._line(range(len(self))[row])

    def _find_ends(self) -> npt.NDArray[np.int64]:
        data = np.frombuffer(self._bytes, np.uint8)
        found = [
            np.flatnonzero(data[start : start + _BLOCK] == ord("\n")) + start
            for start in range(0, len(data), _BLOCK)
        ]
        if len(data) and data[-1] != ord("\n"):
            found.append(np.array([len(data)]))
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _parse(self, row: int) -> dict[str, Any]:
        start = int(self._ends[row - 1]) + 1 if row else 0
        return checked_line(self._path, self._bytes[start : int(self._ends[row])])
