"""DALI's text index of a tar: offset and size of each member of each sample.

The format is that of DALI's ``wds2idx``, version ``v1.2``: a line with the version and the number
of samples, then one line per sample of ``extension offset size name`` groups. Offsets count bytes
from the start of the tar to the member's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vse_shards.errors import DatasetError
from vse_shards.plain_files import read_plain

VERSION = "v1.2"
_MOST = 1 << 53  # bytes: beyond any tar, and sums of two stay in 64 bits


@dataclass(frozen=True)
class Member:
    """One member of a sample: its extension, and offset and size of its data in bytes."""

    extension: str
    offset: int
    size: int
    name: str


def format_index(samples: Sequence[Sequence[Member]]) -> str:
    """Return the index of ``samples``, each a sequence of members in tar order, as text."""
    lines = [f"{VERSION} {len(samples)}"]
    lines += [
        " ".join(f"{m.extension} {m.offset} {m.size} {m.name}" for m in members)
        for members in samples
    ]
    return "\n".join(lines) + "\n"


class Index:
    """Offsets and sizes of the members of every sample of one shard, in order.

    Attributes:
        keys: key of each of the N samples.
    """

    def __init__(
        self, path: Path | str, keys: Sequence[str], columns: dict[str, NDArray[np.int64]]
    ) -> None:
        self.keys = keys
        self._path = path
        self._columns = columns  # by extension: offset and size (N, 2), -1 without a member

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def end(self) -> int:
        """Byte of the tar after the last member, 0 without one."""
        return max(
            (int(one.sum(axis=1).max(initial=0)) for one in self._columns.values()), default=0
        )

    @property
    def extensions(self) -> list[str]:
        """All extensions, in order of first appearance."""
        return list(self._columns)

    def has(self, extension: str) -> NDArray[np.bool_]:
        """Return whether each sample has a member with this extension, (N,) bool."""
        column = self._columns.get(extension)
        return np.zeros(len(self), bool) if column is None else column[:, 0] >= 0

    def offset(self, extension: str) -> NDArray[np.int64]:
        """Return the offset of each sample's member in the tar, (N,) int64, bytes.

        Raises:
            DatasetError: a sample has no member with this extension.
        """
        return self._column(extension)[:, 0]

    def size(self, extension: str) -> NDArray[np.int64]:
        """Return the size of each sample's member, (N,) int64, bytes.

        Raises:
            DatasetError: a sample has no member with this extension.
        """
        return self._column(extension)[:, 1]

    def places(self, extension: str) -> NDArray[np.int64]:
        """Return offset and size in bytes of each sample's member, (N, 2); -1 if it has none."""
        column = self._columns.get(extension)
        return np.full((len(self), 2), -1, np.int64) if column is None else column

    def place(self, row: int, extension: str) -> tuple[int, int]:
        """Return offset and size in bytes of one member of a sample; (-1, -1) if it has none."""
        column = self._columns.get(extension)
        return (-1, -1) if column is None else (int(column[row, 0]), int(column[row, 1]))

    def _column(self, extension: str) -> NDArray[np.int64]:
        missing = np.flatnonzero(~self.has(extension))
        if len(missing):
            raise DatasetError(
                f"{self._path}: sample {self.keys[missing[0]]} has no .{extension} member "
                f"({len(missing)} of {len(self)} samples); the shard has "
                f"{', '.join('.' + e for e in self.extensions)}"
            )
        return self._columns[extension]


def parse_index(text: str | bytes, path: Path | str) -> Index:
    """Read the text of an index, UTF-8 if bytes; ``path`` is named in errors.

    Raises:
        DatasetError: the text is not an index of version ``v1.2``, or is truncated.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path}: cannot read the index: {error}; it is damaged") from None
    lines = text.split("\n")
    version, _, count = lines[0].partition(" ")
    if version != VERSION or not count.isdecimal():
        raise DatasetError(
            f"{path}: starts with {lines[0][:40]!r}, not with '{VERSION} <samples>'; "
            "it is not a shard index"
        )
    if lines[-1] != "" or len(lines) - 2 != int(count):
        raise DatasetError(
            f"{path}: has {len(lines) - 2} lines for {count} samples; it is damaged or cut short"
        )
    return _uniform(lines[1:-1], path) or _any(lines[1:-1], path)


def _uniform(lines: list[str], path: Path | str) -> Index | None:
    """Read samples of the same extensions, as a build writes them, column by column.

    It takes a twentieth of the time of reading them one by one, which an index of others needs.
    """
    width = lines[0].count(" ") + 1 if lines else 1
    words = " ".join(lines).split(" ")
    extensions = words[0:width:4]
    if (
        width % 4
        or len(words) != width * len(lines)
        or len(set(extensions)) != len(extensions)
        or any(line.count(" ") != width - 1 for line in lines)
        or any(set(words[4 * n :: width]) != {name} for n, name in enumerate(extensions))
    ):
        return None
    try:
        columns = {
            name: np.array(
                [list(map(int, words[4 * n + 1 + which :: width])) for which in (0, 1)], np.int64
            ).T.copy()
            for n, name in enumerate(extensions)
        }
    except (ValueError, OverflowError):
        return None
    if any(((one < 0) | (one > _MOST)).any() for one in columns.values()):
        return None
    return Index(path, [name.partition(".")[0] for name in words[3::width]], columns)


def _any(lines: list[str], path: Path | str) -> Index:
    """Read samples one by one."""
    keys: list[str] = []
    columns: dict[str, NDArray[np.int64]] = {}
    for row, line in enumerate(lines):
        words = line.split(" ")
        try:
            if len(words) % 4:
                raise ValueError
            members = [
                Member(words[i], int(words[i + 1]), int(words[i + 2]), words[i + 3])
                for i in range(0, len(words), 4)
            ]
            if any(not 0 <= n <= _MOST for one in members for n in (one.offset, one.size)):
                raise ValueError
        except ValueError:
            raise DatasetError(
                f"{path}: line {row + 2} is {line[:60]!r}, not groups of extension, offset, size "
                "and name; it is damaged"
            ) from None
        keys.append(members[0].name.partition(".")[0])
        for member in members:
            column = columns.setdefault(member.extension, np.full((len(lines), 2), -1, np.int64))
            column[row] = member.offset, member.size
    return Index(path, keys, columns)


def read_index(path: Path) -> Index:
    """Read the index file ``path``.

    Raises:
        DatasetError: the file is missing, or is not an index.
    """
    try:
        data = read_plain(path, None)
    except FileNotFoundError:
        raise DatasetError(f"{path}: the index is missing; build the dataset again") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot read the index: {error}") from error
    return parse_index(data, path)
