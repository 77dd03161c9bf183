"""Counts of the copies of remote shards: by a step for its record, of a run for its last line."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from vse_scale.console import log

Counts = Mapping[str, float]

# From the source, indices included; what was on this machine already; and the seconds that
# the loader waited for a shard, which a step waits only once its prefetched batches are used up.
NAMES = ("fetched_shards", "found_shards", "fetched_bytes", "wait_seconds")


class Tally:
    """Counts of one cache, added to by several threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._counts = dict.fromkeys(NAMES, 0.0)

    def add(self, name: str, more: float) -> None:
        """Add to one of the counts."""
        with self._guard:
            self._counts[name] += more

    def counts(self) -> Counts:
        """Return all counts since the start."""
        with self._guard:
            return dict(self._counts)


def total(several: Iterable[Counts]) -> Counts:
    """Add up counts, such as of several caches; those of local datasets are empty."""
    sums: dict[str, float] = {}
    for counts in several:
        for name in NAMES if counts else ():
            sums[name] = sums.get(name, 0.0) + counts[name]
    return sums


def since(before: Counts, now: Counts) -> Counts:
    """Return what was added to the counts ``before``; empty where nothing was."""
    added = {name: value - before.get(name, 0.0) for name, value in now.items()}
    return added if any(added.values()) else {}


def in_words(counts: Counts) -> str:
    """Return the counts as a phrase."""
    fetched, found = int(counts["fetched_shards"]), int(counts["found_shards"])
    return (
        f"{fetched:,} shards fetched ({counts['fetched_bytes'] / 1e9:.2f} GB with indices), "
        f"{found:,} found on this machine, waited {counts['wait_seconds']:.1f} s for them"
    )


def say_staged(counts: Counts) -> None:
    """Log the counts of a run, unless all of its datasets are local."""
    if counts:
        log.info("staging: %s", in_words(counts))
