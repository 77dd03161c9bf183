"""Making of planned shards by Ray: its tasks are the parts that `make` makes."""

from __future__ import annotations

from typing import Any

from vse_shards.errors import OutputError, SourceError
from vse_shards.machines import MadePart, Part, count_shards, make
from vse_shards.masking import masked
from vse_shards.notes import shown
from vse_shards.output import OutputFolder
from vse_shards.progress import Progress

ENGINE = "ray"
_PARTS_PER_CORE = 4  # so that no core waits long for the last


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
    if engine != ENGINE and not engine.startswith(f"{ENGINE}://"):
        raise SourceError(
            f"--engine {shown(engine)}: is not known; write ray, or ray://HOST:PORT of a cluster"
        )
    try:
        import ray
    except ImportError:
        raise SourceError(
            f"--engine {shown(engine)}: Ray is not installed: pip install 'ray[client]'"
        ) from None
    out = OutputFolder(out).path  # tasks run in other folders
    shards = count_shards(out)
    if not shards:
        return MadePart(0, 0, sealed=True)
    try:
        address = None if engine == ENGINE else engine
        ray.init(address=address)
    except Exception as error:  # as of a cluster that does not start in time
        raise OutputError(
            f"--engine {shown(engine)}: cannot be reached: {' '.join(str(error).split())[:80]}; "
            "check the address, and ray status there"
        ) from error
    try:
        return _run(ray, out, shards)
    finally:
        ray.shutdown()


def _run(ray: Any, out: str, shards: int) -> MadePart:
    cores = int(ray.cluster_resources().get("CPU", 1))
    parts = max(1, min(shards, _PARTS_PER_CORE * cores))
    task = ray.remote(num_cpus=1, max_retries=3)(make)
    waiting = [task.remote(out, Part(number, parts), 1) for number in range(parts)]
    written = 0
    with Progress("building", parts, "parts") as progress:
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            try:
                written += ray.get(done).written
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise OutputError(
                    f"{masked(out)}: a worker of Ray died: {type(error).__name__}; run the same "
                    "command again: finished shards are kept"
                ) from error
            progress.update(parts - len(waiting))
    return MadePart(shards, written)
