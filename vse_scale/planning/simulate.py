"""A run on many nodes, simulated: the real order, the staging's rules, and no data.

Ranks train in step. A rank's loader announces the shards of a batch and of those that follow, waits
for those that the batch reads, and is as many batches ahead as it is in training. Images are
decoded in no time: what decoding takes is `vse_scale.planning.steps`'s subject.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vse_scale.config import Config
from vse_scale.data.plan import Plan
from vse_scale.data.producer import batches_apart
from vse_scale.planning.events import Clock, Links, Process, Signal
from vse_scale.planning.made_shards import ShardList
from vse_scale.planning.staged_nodes import Counted, Node, Stager, Storage
from vse_scale.training.setup import make_plan


@dataclass(frozen=True)
class Cluster:
    """Nodes, and what a step takes where nothing waits.

    Attributes:
        nodes: number of nodes.
        ranks: of each.
        storage: where they have their shards from.
        step: seconds of a step.
    """

    nodes: int
    ranks: int
    storage: Storage
    step: float


@dataclass
class Phase:
    """The steps from one start on.

    Attributes:
        begins: seconds since its start at which each step began.
        stalls: seconds that each step waited for its batch.
        first: the first step, counted over all epochs.
        counted: of each node, since the start of the simulation, at the end.
    """

    first: int
    begins: list[float] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)


class Simulation:
    """A run on simulated nodes, which keep their shards from one start to the next.

    Args:
        config: of the run.
        shards: of its dataset.
        cluster: where it runs.

    Raises:
        ConfigError: the batch fits neither the dataset nor the ranks.
    """

    def __init__(self, config: Config, shards: ShardList, cluster: Cluster) -> None:
        self.plan = make_plan(config, shards)
        self.cluster, self._data, self._shards = cluster, config.data, shards
        self._bounds = np.cumsum(shards.shard_sizes)
        self._nodes = [
            Node(number, shards.shard_bytes, cluster.storage) for number in range(cluster.nodes)
        ]
        self.plan.part(0, 0, 0, cluster.nodes * cluster.ranks)  # raises where it does not divide

    def run(
        self, first: int, steps: int, *, lost: int | None = None,
        tell: Callable[[], None] = lambda: None,
    ) -> Phase:  # fmt: skip
        """Start at step ``first`` and train ``steps`` steps.

        Args:
            first: counted over all epochs.
            steps: how many.
            lost: a node that an empty one takes the place of.
            tell: called after each step.

        Raises:
            ConfigError: shards in use have no room on a node.
        """
        clock = Clock()
        links = Links(self.cluster.nodes, self.cluster.storage.link, self.cluster.storage.storage)
        for number, node in enumerate(self._nodes):
            node.start(clock, lost=number == lost)
        phase, ended = Phase(first), Signal()
        ready = _Counter(self.cluster.nodes * self.cluster.ranks)
        for rank in range(self.cluster.nodes * self.cluster.ranks):
            stager = Stager(self._nodes[rank // self.cluster.ranks], clock, links)
            clock.start(self._load(rank, stager, ready, first))
        clock.start(self._train(clock, ready, phase, steps, ended, tell))
        clock.run(links, ended)
        phase.counted = [
            Counted(list(n.counted.fetched), n.counted.found, n.counted.bytes, n.counted.most)
            for n in self._nodes
        ]
        return phase

    def _load(self, rank: int, stager: Stager, ready: _Counter, first: int) -> Process:
        """Request batch after batch, each as early as the loader does."""
        plan, ahead = self.plan, self._data.cache_ahead
        most = batches_apart(self._data.prefetch)
        ranks = self.cluster.nodes * self.cluster.ranks
        position = divmod(first, plan.steps_per_epoch)
        number = 0
        while True:
            while number >= ready.trained + most:
                yield ready.after_step
            now, then = plan.shards(*position, ahead, rank=rank, ranks=ranks)
            if self._shards.remote:
                stager.prepare([*now, *then])
                if stager.missing(now):
                    for shard in self._read(plan, position, rank, ranks):
                        yield from stager.fetch(shard)
            number += 1
            ready.add(number)
            position = plan.following(*position)

    def _read(self, plan: Plan, position: tuple[int, int], rank: int, ranks: int) -> list[int]:
        """Return the shards of a part of a batch, in the order of its pairs."""
        images = plan.part(*position, rank, ranks).pairs[:, 0]
        return list(dict.fromkeys(np.searchsorted(self._bounds, images, side="right").tolist()))

    def _train(
        self, clock: Clock, ready: _Counter, phase: Phase, steps: int, ended: Signal,
        tell: Callable[[], None],
    ) -> Process:  # fmt: skip
        for number in range(steps):
            before = clock.now
            yield ready.all_have(number + 1)
            phase.begins.append(clock.now)
            phase.stalls.append(clock.now - before)
            yield clock.wait(self.cluster.step)
            ready.step_done()
            tell()
        ended.fire()


class _Counter:
    """Numbers of batches that every rank has, and of steps that are trained."""

    def __init__(self, ranks: int) -> None:
        self.trained, self.after_step = 0, Signal()
        self._ranks = ranks
        self._lacking: dict[int, int] = {}
        self._signals: dict[int, Signal] = {}

    def add(self, batches: int) -> None:
        """A rank has one batch more, ``batches`` in all."""
        self._lacking[batches] = self._lacking.get(batches, self._ranks) - 1
        if not self._lacking[batches]:
            self.all_have(batches).fire()

    def all_have(self, batches: int) -> Signal:
        """Return what fires when every rank has as many batches."""
        return self._signals.setdefault(batches, Signal())

    def step_done(self) -> None:
        """The ranks have trained one more step, and wait for the batch of the next."""
        self.trained += 1
        done, self.after_step = self.after_step, Signal()
        done.fire()
