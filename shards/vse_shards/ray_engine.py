"""Planned shards made by a Ray cluster, whose tasks are the parts of `make`."""

from __future__ import annotations

from typing import Any

from vse_shards.machines import MadePart, Part, count_shards, make
from vse_shards.output import OutputFolder
from vse_shards.progress import Progress
from vse_shards.ray_cluster import PARTS_PER_WORKER, connected, import_ray, run_tasks


def make_with_ray(out: str, engine: str) -> MadePart:
    """Make all shards of a plan that are not finished, by the workers of a Ray cluster.

    A task whose worker or machine dies is started again, three times.

    Args:
        out: folder or URL of the dataset, which all machines see.
        engine: ``ray``, the cluster of ``RAY_ADDRESS`` or else this machine; or ``ray://HOST:PORT``.

    Raises:
        SourceError: Ray is not installed, or the engine is another.
        OutputError: Ray cannot be reached, or a task died too often.
        UserError: as of `make`.
    """
    ray = import_ray(engine)
    out = OutputFolder(out).path  # tasks run in other folders
    shards = count_shards(out)
    if not shards:
        return MadePart(0, 0, sealed=True)
    with connected(ray, engine):
        return _run(ray, out, shards)


def _run(ray: Any, out: str, shards: int) -> MadePart:
    cores = int(ray.cluster_resources().get("CPU", 1))
    parts = max(1, min(shards, PARTS_PER_WORKER * cores))
    tasks = [(out, Part(number, parts), 1) for number in range(parts)]
    written = 0
    with Progress("building", parts, "parts") as progress:
        for done, made in enumerate(run_tasks(ray, make, tasks, out, num_cpus=1), start=1):
            written += made.written
            progress.update(done)
    return MadePart(shards, written)
