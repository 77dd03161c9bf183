"""Files that are kept open, or in memory, while they are read: the least recently used goes."""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Hashable
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from vse_scale.errors import DatasetError

T = TypeVar("T")

_MOST_MAPS = 1 << 14  # a quarter of the maps that Linux allows a process (vm.max_map_count)


class Recent(Generic[T]):
    """The values that were used last, up to a limit of their weights together.

    Args:
        limit: of all weights; one value is kept whatever its weight.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit, self._weight = limit, 0
        self._kept: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._guard = threading.Lock()

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._kept)

    def get(self, key: Hashable) -> T | None:
        """Return a value that is kept, which makes it the one that was used last."""
        with self._guard:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def make_room(self, weight: int = 1) -> None:
        """Drop values until one of this weight fits."""
        with self._guard:
            self._drop(self._limit() - weight)

    def put(self, key: Hashable, value: T, weight: int = 1) -> None:
        """Keep a value."""
        with self._guard:
            self._take(key)
            self._drop(self._limit() - weight)
            self._kept[key] = (value, weight)
            self._weight += weight

    def keep(self, keys: Container[Hashable]) -> None:
        """Drop all values but these."""
        with self._guard:
            for key in [key for key in self._kept if key not in keys]:
                self._take(key)

    def _drop(self, most: int) -> None:
        while self._kept and self._weight > most:
            self._take(next(iter(self._kept)))

    def _take(self, key: Hashable) -> None:
        found = self._kept.pop(key, None)
        self._weight -= 0 if found is None else found[1]


def most_maps() -> int:
    """Return how many files this process may map for its datasets.

    It is a quarter of the files that it may open, since a map of Python's takes a descriptor.
    """
    return max(1, min(_MOST_MAPS, getrlimit(RLIMIT_NOFILE)[0] // 4))


def map_file(path: Path) -> npt.NDArray[np.uint8]:
    """Map a file, read-only, (bytes,) uint8.

    Raises:
        DatasetError: it cannot be mapped.
    """
    try:
        # A plain array over the same memory, because its slices cost a tenth of a memmap's.
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except OSError as error:
        remedies = {errno.EMFILE: "raise `ulimit -n`", errno.ENOMEM: "raise vm.max_map_count"}
        remedy = remedies.get(error.errno or 0, "check the file")
        raise DatasetError(f"{path}: cannot be mapped ({error.strerror}); {remedy}") from error
