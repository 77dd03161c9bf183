"""The seconds of a step on N ranks, from a machine's constants.

A rank computes, exchanges and updates one after the other: nothing overlaps, as on gloo, and as
in DeepSpeed by default under stages 0 to 2. Images are decoded at the same time. So a step lasts as
long as the slowest of three: that chain, the rank's loader, and the work of all ranks of a machine,
shared out over its cores.

A ring of N ranks sends (N - 1) / N of the whole for a gather or a reduce-scatter, twice that for an
all-reduce, in N - 1 hops or twice as many: Patarasuk and Yuan, "Bandwidth optimal all-reduce
algorithms for clusters of workstations", JPDC 2009.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vse_scale.errors import ConfigError
from vse_scale.planning.constants import Collective, Constants
from vse_scale.planning.traffic import Stage, Workload, loss_gathers, step_bytes

_SMALL_REDUCES = 3  # the norm, whether it is finite, and whether to stop


@dataclass(frozen=True)
class Step:
    """The estimate of a step.

    Attributes:
        seconds: by part; the last, ``waiting``, is for images or for a core.
        binds: the resource that limits the step: "computing", "network", "data" or "storage".
    """

    seconds: dict[str, float]
    binds: str

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(self.seconds.values())


def step_time(
    work: Workload, constants: Constants, stage: Stage, ranks: int, staged: float = 0.0
) -> Step:
    """Estimate the step of ``ranks`` ranks that share the global batch of ``work``.

    Args:
        work: of all ranks.
        constants: of the machine.
        stage: of ZeRO.
        ranks: how many.
        staged: bytes of shards that a node copies from their storage in a step.

    Raises:
        ConfigError: there are several ranks, and the network was not measured.
    """
    pairs = work.global_batch / ranks
    here = min(ranks, constants.ranks_per_host or ranks)
    rank = constants.computing_beside(here)
    # One rank was measured, whose loss has its own pairs alone as columns.
    others = pairs * (work.global_batch - pairs)
    sent = _exchange(work, constants, stage, ranks)
    chain = {
        "computing": rank.fixed_seconds
        + pairs * rank.pair_seconds
        + others * constants.score_seconds,
        **sent,
        "optimizer": constants.optimizer_seconds / (ranks if stage else 1),
    }
    images = pairs / work.captions_per_image
    busy = sum(chain.values())
    decoding = images * constants.image_core_seconds
    bounds = {
        "chain": busy,
        "data": images * constants.image_seconds,
        "cores": here * (rank.cores * busy + decoding) / constants.cores,
        "storage": staged / (constants.storage_bytes_per_second or float("inf")),
    }
    slowest = max(bounds, key=bounds.__getitem__)
    network = sum(sent.values())
    binds = "network" if network > busy - network else "computing"
    if slowest == "data" or (slowest == "cores" and decoding > rank.cores * busy):
        binds = "data"
    if slowest == "storage":
        binds = "storage"
    return Step({**chain, "waiting": bounds[slowest] - busy}, binds)


def efficiency(work: Workload, constants: Constants, stage: Stage, ranks: int) -> float:
    """Return pairs/s of a rank, over those of one rank alone with as many pairs to a step."""
    alone = replace(work, global_batch=work.global_batch // ranks)
    one = step_time(alone, constants, stage, 1).total
    return one / step_time(work, constants, stage, ranks).total


def _exchange(work: Workload, constants: Constants, stage: Stage, ranks: int) -> dict[str, float]:
    """Return the seconds of a rank's collectives."""
    sent = step_bytes(work, stage, ranks)
    if ranks == 1:
        return dict.fromkeys(sent, 0.0)
    network = constants.network
    if network is None:
        raise ConfigError(
            'the constants have no "network", which takes two GPUs to measure; fill it in: for '
            "all_reduce, all_gather and reduce_scatter, hop_seconds and bytes_per_second"
        )
    hops = ranks - 1
    whole, share = network.all_reduce, network.reduce_scatter

    def seconds(kind: Collective, size: float, calls: int, each: int) -> float:
        return size / kind.bytes_per_second + calls * each * kind.hop_seconds

    gradients = (
        seconds(share, sent["gradients"], 1, hops)
        if stage == 3
        else seconds(whole, sent["gradients"], 1, 2 * hops)
    )
    return {
        "loss": seconds(network.all_gather, sent["loss"], len(loss_gathers(work, ranks)), hops),
        "gradients": gradients + _SMALL_REDUCES * 2 * hops * whole.hop_seconds,
        "weights": seconds(network.all_gather, sent["weights"], 1, hops) if stage else 0.0,
    }
