"""Work on a Ray cluster, which a machine without Ray can import."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vse_shards.errors import OutputError, SourceError
from vse_shards.masking import masked
from vse_shards.notes import shown

ENGINE = "ray"
PARTS_PER_WORKER = 4  # so that no core or GPU waits long for the last


def import_ray(engine: str) -> Any:
    """Return the module.

    Raises:
        SourceError: Ray is not installed, or ``engine`` is another.
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
    return ray


@contextmanager
def connected(ray: Any, engine: str) -> Iterator[None]:
    """Hold the connection to a cluster, or a cluster of this machine alone, for the block.

    Raises:
        OutputError: it cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report a cluster of its own
    try:
        ray.init(address=None if engine == ENGINE else engine)
    except Exception as error:  # as of a cluster that does not start in time
        raise OutputError(
            f"--engine {shown(engine)}: cannot be reached: {' '.join(str(error).split())[:80]}; "
            "check the address, and ray status there"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def run_tasks(
    ray: Any,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    out: str,
    **resources: int,
) -> Iterator[Any]:
    """Yield the results of ``function`` for each of ``arguments``, as they end.

    Args:
        ray: the module, connected.
        function: of a module that the machines of the cluster have, too.
        arguments: of each call.
        out: the folder that is written, for the message.
        resources: of a task, as Ray names them.

    Raises:
        OutputError: a worker died too often.
        Exception: of ``function``, as it was raised.
    """
    task = ray.remote(max_retries=3, **resources)(function)
    waiting = [task.remote(*one) for one in arguments]
    while waiting:
        (done,), waiting = ray.wait(waiting, num_returns=1)
        try:
            yield ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise OutputError(
                f"{masked(out)}: a worker of Ray died: {type(error).__name__}; run the same "
                "command again: what is finished is kept"
            ) from error
