"""The staging of shards on simulated nodes, by the rules of `vse_scale.data.staging`.

A process fetches what it prepared in that order, four shards at a time; a shard that is read and
still waits is fetched ahead of the others. A node has each shard once, however many of its
processes ask for it, and drops the shard that was used longest ago and that none has prepared.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vse_scale.data.staging import THREADS
from vse_scale.errors import ConfigError
from vse_scale.planning.events import Clock, Links, Process, Signal


@dataclass(frozen=True)
class Storage:
    """The source of the shards, and the disks where nodes keep them.

    Attributes:
        link: bytes a second into a node, the less of its network and what its disk writes.
        storage: bytes a second of the storage to all nodes together.
        request: seconds until the first byte of a shard.
        disk: bytes a second that a node's disk reads, at which a process compares a shard that it
            finds with its digest.
        limit: bytes of all shards on a node.
    """

    link: float
    storage: float = float("inf")
    request: float = 0.0
    disk: float = float("inf")
    limit: float = float("inf")


@dataclass
class Counted:
    """Shards and bytes of one node since the start.

    Attributes:
        fetched: shards from the storage, in order.
        found: shards that another process or an earlier start had fetched.
        bytes: from the storage.
        most: bytes of shards on the node.
    """

    fetched: list[int] = field(default_factory=list)
    found: int = 0
    bytes: int = 0
    most: int = 0


class Node:
    """A node's folder of shards.

    Args:
        number: of the node.
        sizes: bytes of each shard.
        storage: where shards come from.
    """

    def __init__(self, number: int, sizes: Sequence[int], storage: Storage) -> None:
        self.sizes, self.counted = sizes, Counted()
        self._number, self._storage = number, storage
        self._shards: OrderedDict[int, int] = OrderedDict()  # by last use; the copy's number
        self.start(Clock(), lost=True)

    def start(self, clock: Clock, *, lost: bool) -> None:
        """Start anew with the shards that are here; with ``lost`` in another, empty node."""
        if lost:
            self._shards.clear()
        self._clock = clock
        self._used = sum(self.sizes[shard] for shard in self._shards)
        self.held: Counter[int] = Counter()
        self._locked: dict[int, Signal] = {}

    def stage(self, shard: int, compared: dict[int, int], links: Links) -> Process:
        """Fetch a shard unless it is here; ``compared`` are the copies that a process knows."""
        while shard in self._locked:
            yield self._locked[shard]
        self._locked[shard] = Signal()
        size = self.sizes[shard]
        if shard in self._shards:
            self.counted.found += 1
            if compared.get(shard) != self._shards[shard]:
                yield self._clock.wait(size / self._storage.disk)
        else:
            self._reserve(shard)
            yield self._clock.wait(self._storage.request)
            yield links.transfer(self._number, size)
            self.counted.fetched.append(shard)
            self.counted.bytes += size
            self._shards[shard] = len(self.counted.fetched)
        self._shards.move_to_end(shard)
        compared[shard] = self._shards[shard]
        self._locked.pop(shard).fire()

    def _reserve(self, shard: int) -> None:
        size, limit = self.sizes[shard], self._storage.limit
        for other in list(self._shards) if self._used + size > limit else ():
            if self._used + size <= limit:
                break
            if not self.held[other] and other not in self._locked:
                del self._shards[other]
                self._used -= self.sizes[other]
        if self._used + size > limit:
            raise ConfigError(
                f"data.cache_gb is {limit / 1e9:g}, and at "
                f"{self._clock.now:.1f} s all shards on a node are in use, with no room for one "
                f"more of {size / 1e9:.3g} GB; raise data.cache_gb"
            )
        self._used += size
        self.counted.most = max(self.counted.most, self._used)


@dataclass
class _Job:
    shard: int
    begun: bool = False
    done: Signal = field(default_factory=Signal)


class Stager:
    """The staging of one process, as `StagingCache` does it.

    Args:
        node: where it runs.
        clock: of the simulation.
        links: that bring shards.
    """

    def __init__(self, node: Node, clock: Clock, links: Links) -> None:
        self._node, self._links = node, links
        self._jobs: dict[int, _Job] = {}
        self._held: set[int] = set()
        self._compared: dict[int, int] = {}
        self._queue: deque[_Job] = deque()
        self._more = Signal()
        for _ in range(THREADS):
            clock.start(self._work())

    def prepare(self, shards: Iterable[int]) -> None:
        """Start to fetch these shards in this order, and release all others."""
        wanted = dict.fromkeys(shards)
        if wanted.keys() == self._jobs.keys():
            return
        for shard in self._held - wanted.keys():
            self._held.remove(shard)
            self._node.held[shard] -= 1
        for shard in self._jobs.keys() - wanted.keys():
            self._jobs.pop(shard).begun = True  # no thread begins it any more
        for shard in wanted:
            if shard not in self._jobs:
                self._jobs[shard] = _Job(shard)
                self._queue.append(self._jobs[shard])
        more, self._more = self._more, Signal()
        more.fire()

    def missing(self, shards: Iterable[int]) -> bool:
        """Return whether one of the prepared shards is not here yet."""
        return not all(self._jobs[shard].done.fired for shard in shards)

    def fetch(self, shard: int) -> Process:
        """Wait for a prepared shard; one that no thread has begun is fetched at once."""
        job = self._jobs[shard]
        if job.begun:
            yield job.done
        else:
            yield from self._fulfil(job)

    def _work(self) -> Process:
        while True:
            while not self._queue:
                yield self._more
            job = self._queue.popleft()
            if not job.begun:
                yield from self._fulfil(job)

    def _fulfil(self, job: _Job) -> Process:
        job.begun = True
        yield from self._node.stage(job.shard, self._compared, self._links)
        if self._jobs.get(job.shard) is job and job.shard not in self._held:
            self._held.add(job.shard)
            self._node.held[job.shard] += 1
        job.done.fire()
