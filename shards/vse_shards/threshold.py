"""Rejected rows: their file, their number by reason, and the number that ends a build."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import BinaryIO

from vse_shards.errors import SourceError
from vse_shards.notes import shown

_GIVEN = re.compile(r"(?P<rows>\d+)|(?P<percent>\d+(?:\.\d+)?)%")
_FIRST = 3  # rows named for each reason


@dataclass(frozen=True)
class RejectLimit:
    """Rejected rows that a build accepts: a share of the rows read, and a number in any case.

    The default, 1% and 10 rows, lets the few damaged files of any large data set pass.
    """

    share: float = 0.01
    rows: int = 10

    @classmethod
    def parse(cls, text: str) -> RejectLimit:
        """Read ``N`` or ``P%``.

        Raises:
            SourceError: the text is neither.
        """
        found = _GIVEN.fullmatch(text)
        if found is None or float(found["percent"] or 0) > 100:
            raise SourceError(
                f"--max-rejects {shown(text)}: is neither a number of rows nor a share up to 100%; "
                "write 50 or 5%"
            )
        if found["rows"] is not None:
            return cls(0.0, int(found["rows"]))
        return cls(float(found["percent"]) / 100, 0)

    def allowed(self, read: int) -> int:
        """Return the number of rejects that a source of ``read`` rows may have."""
        return max(self.rows, math.floor(self.share * read))


class Rejects:
    """Lines of ``rejects.jsonl``, written if there is a file, and counted by reason.

    Args:
        file: file to write the lines to.
    """

    def __init__(self, file: BinaryIO | None = None) -> None:
        self._file = file
        self._first: dict[str, list[str]] = {}
        self.digest = hashlib.sha256()
        self.lines = 0
        self.reasons: Counter[str] = Counter()

    def keep(self, lines: Iterable[str]) -> None:
        """Write lines of an earlier build, which was accepted."""
        for line in lines:
            self.lines += 1
            self.digest.update(line.encode())
            if self._file is not None:
                self._file.write(line.encode())

    def add(self, lines: Iterable[str]) -> None:
        """Write and count lines."""
        for line in lines:
            self.keep([line])
            content = json.loads(line)
            self.reasons[content["reason"]] += 1
            first = self._first.setdefault(content["reason"], [])
            if len(first) < _FIRST:
                detail = "" if first else f": {shown(content['detail'])}"
                first.append(f"{shown(content['source'])}{detail}")

    def check(
        self, name: str, limit: RejectLimit, read: int, accepted: Collection[str] = ()
    ) -> None:
        """End the build if too many rows were rejected.

        Args:
            name: name of the source.
            limit: rejects that are accepted.
            read: rows of the source.
            accepted: reasons that do not count.

        Raises:
            SourceError: with each reason, its number, and the first three rows of it.
        """
        counted = {r: n for r, n in self.reasons.most_common() if r not in accepted}
        rejected, allowed = sum(counted.values()), limit.allowed(read)
        if rejected <= allowed:
            return
        reasons = "; ".join(
            f"{count:,} {reason} ({', '.join(self._first[reason])}"
            f"{', ...' if count > len(self._first[reason]) else ''})"
            for reason, count in counted.items()
        )
        raise SourceError(
            f"{name}: {rejected:,} of {read:,} rows cannot be used, {allowed:,} may be: {reasons}; "
            f"correct the source, or accept them with --max-rejects {rejected}"
        )

    def first(self, reason: str) -> list[str]:
        """Return the first rows of a reason, the first of all with its detail."""
        return self._first.get(reason, [])

    def text(self) -> str:
        """Return the number of each reason."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
