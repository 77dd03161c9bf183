"""The shards that a node reads in an epoch, by the order of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vse_scale.config import Config
from vse_scale.data.plan import Plan
from vse_scale.errors import UserError
from vse_scale.planning.made_shards import ShardList
from vse_scale.training.setup import make_plan

RANKS_PER_NODE = 8  # supposed where no constants say it


@dataclass(frozen=True)
class Reading:
    """A node's part of the dataset: the most of the first, the middle and the last node.

    Attributes:
        shards: that it reads in an epoch.
        bytes: of them.
        first: bytes of those that the first batch may read.
        steps: of an epoch.
        staged: whether they come from a storage, rather than from a folder of the node.
    """

    shards: int
    bytes: int
    first: int
    steps: int
    staged: bool

    @property
    def step_bytes(self) -> float:
        """Bytes of a step that are copied to the node."""
        return self.bytes / self.steps if self.staged else 0.0


def read_by_nodes(
    config: Config, ranks: Sequence[int], per_node: int
) -> tuple[dict[int, Reading], str]:
    """Return what a node of ``per_node`` ranks reads, by the number of all ranks, and a line of it.

    Where the dataset is not there, or too small for the batch, the line says so.
    """
    try:
        listed = ShardList.of(config.data)
        plan = make_plan(config, listed)
    except (UserError, OSError) as error:
        return {}, (
            f"shards are not planned: {error}; `vse-scale simulate --shards N` plans made ones"
        )
    found = {count: _of_node(config, plan, listed, count, per_node) for count in ranks}
    size = sum(listed.shard_bytes)
    return found, (
        f"{len(listed.shard_bytes):,} shards, {size / 1e9:,.2f} GB, "
        f"{plan.streams} stream{'s'[: plan.streams - 1]}, {per_node} ranks a node, "
        f"{'staged on each' if listed.remote else 'read from a folder'}"
    )


def _of_node(config: Config, plan: Plan, listed: ShardList, ranks: int, per_node: int) -> Reading:
    nodes = -(-ranks // per_node)
    found = []
    for node in sorted({0, nodes // 2, nodes - 1}):
        own = range(node * per_node, min((node + 1) * per_node, ranks))
        epoch = {shard for rank in own for shard in plan.shards_of_epoch(0, rank=rank, ranks=ranks)}
        first = {shard for rank in own for shard in plan.shards(0, 0, rank=rank, ranks=ranks)[0]}
        found.append(
            [len(epoch), *(sum(map(listed.shard_bytes.__getitem__, s)) for s in (epoch, first))]
        )
    shards, size, first_bytes = (max(column) for column in zip(*found, strict=True))
    return Reading(shards, size, first_bytes, plan.steps_per_epoch, listed.remote)
