"""Stage ``loss``: bytes, memory and time of the loss over several ranks, beside its peers."""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vse_scale.bench.job import Job
from vse_scale.bench.rows import Row, row
from vse_scale.bench.traffic import LOSSES, Cost, run_rank
from vse_scale.console import heartbeat

PEER = "open_clip"
_RANKS = (2, 4)
_LARGE = 4096  # pairs of a node of GPUs; here scores begin to take more memory than embeddings
_PATIENCE_SECONDS = 240.0


def measure(job: Job) -> Iterator[list[Row]]:
    """Yield rows for 2 and 4 ranks that share the configured batch, and a large one."""
    data, dim = job.config.data, job.config.model.embed_dim
    batch, shared = data.global_batch, data.captions_per_image
    batches = [batch] if job.small else sorted({batch, _LARGE})
    for ranks, pairs in itertools.product(_RANKS, batches):
        own = max(1, pairs // ranks // shared) * shared
        with heartbeat(f"{ranks} ranks"):
            costs = compare(
                ranks, pairs=own, captions_per_image=shared, dim=dim, rounds=job.repeats
            )
        of_images = f" of {ranks * own // shared} images" if shared > 1 else ""
        yield _rows(job, f"{ranks} ranks, {ranks * own} pairs{of_images} x {dim}", costs)


def compare(
    ranks: int, *, pairs: int, dim: int, rounds: int, captions_per_image: int = 1
) -> dict[str, list[Cost]]:
    """Compute the losses of one batch in turns, on ``ranks`` real ranks.

    Args:
        ranks: number of processes, each on a GPU if there are enough, else on the CPU.
        pairs: pairs of a rank.
        dim: size of the embeddings.
        rounds: number of timed rounds.
        captions_per_image: pairs that share an image.

    Returns:
        Costs of the main rank by loss: first those of a round that measured bytes and memory, then
        those of the timed rounds.

    Raises:
        RuntimeError: a rank failed.
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory(prefix="vse-bench-loss-") as folder:
        common = (
            ranks,
            str(Path(folder, "rendezvous")),
            pairs,
            captions_per_image,
            dim,
            rounds,
            results,
        )
        processes = [context.Process(target=run_rank, args=(n, *common)) for n in range(ranks)]
        for process in processes:
            process.start()
        try:
            found = dict(results.get(timeout=_PATIENCE_SECONDS) for _ in processes)
            for process in processes:
                process.join(_PATIENCE_SECONDS)
        except queue.Empty:
            raise RuntimeError("a rank of the stage loss failed; its error is above") from None
        finally:
            for process in processes:
                process.kill()
    costs: dict[str, list[Cost]] = found[0]
    return costs


def _rows(job: Job, case: str, costs: dict[str, list[Cost]]) -> list[Row]:
    kinds: dict[str, Callable[[list[Cost]], list[float]]] = {
        "kB sent, ring": lambda found: [found[0].ring / 1e3],
        "kB sent, sockets": lambda found: [cost.sockets / 1e3 for cost in found[1:]],
        "ms": lambda found: [cost.seconds * 1e3 for cost in found[1:]],
        "CPU ms of a rank": lambda found: [cost.cpu_seconds * 1e3 for cost in found[1:]],
    }
    return [
        row(
            job, "loss", case, name, peer=PEER, unit=unit,
            values=values(costs[name]), peer_values=values(costs[PEER]),
            peak_bytes=costs[name][0].peak_bytes,
        )
        for unit, values in kinds.items()
        if all(values(costs[PEER]))  # NCCL sends nothing through sockets
        for name in LOSSES
    ]  # fmt: skip
