"""Measure this machine's constants for one configuration, in separate processes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from vse_scale.config import Config
from vse_scale.console import heartbeat
from vse_scale.errors import UserError
from vse_scale.model.adapters import trained_numbers
from vse_scale.model.blueprint import blueprint
from vse_scale.planning.constants import Collective, Computing, Constants, Network
from vse_scale.run.system import describe_system
from vse_scale.world.join import free_port
from vse_shards.json_text import read_json

_COPIED = 1 << 26  # floats
_WRITTEN = 1 << 28  # bytes
_HOPS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}  # times N - 1


def measure_machine(config: Config, ranks: list[int]) -> Constants:
    """Time steps of one rank alone and of several at once, and the collectives.

    A rank gets as many pairs as it would with the fewest and the most of ``ranks``, the numbers
    that the plan is for.

    Raises:
        UserError: a process failed; the message is its last line.
    """
    sizes = sizes_of(config, ranks)
    model, _ = blueprint(config)
    cores, gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
    concurrent = concurrent_ranks(ranks, cores=cores, gpus=gpus)
    with tempfile.TemporaryDirectory(prefix="vse-plan-") as folder, heartbeat("measuring"):
        here = Path(folder)
        given = [str(size) for size in sizes]
        found = {
            count: _run(config, here, "computing", given, worlds=count, ranks=1)
            for count in concurrent
        }
        together = gpus or max(2, concurrent[-1])
        network = _run(config, here, "network", [], worlds=1, ranks=together)
    single = found[1]
    device = describe_system(1)
    return Constants(
        device=device["gpus"][0]["name"] if gpus else device["processor"],
        cuda=gpus > 0,
        cores=cores,
        memory_bytes=device["gpus"][0]["memory_bytes"] if gpus else psutil.virtual_memory().total,
        ranks_per_host=gpus or None,
        parameters=sum(weight.numel() for weight in model.parameters()),
        trained=trained_numbers(model),
        tokens=round(max(step["tokens"] for step in single["steps"])),
        computing=[
            _computing(one["steps"], count, 0.0 if gpus else min(1.0, cores / count))
            for count, one in found.items()
        ],
        score_seconds=single["score_seconds"],
        optimizer_seconds=single["steps"][0]["optimizer"],
        image_seconds=single["steps"][-1]["image_seconds"],
        image_core_seconds=single["steps"][-1]["image_core_seconds"],
        network=_network(network) if together > 1 else None,
        copy_bytes_per_second=_copy_rate(),
        write_bytes_per_second=_write_rate(Path(config.run.dir)),
        start_seconds=single["start_seconds"],
    )


def _copy_rate() -> float:
    """Return the bytes a second that a checkpoint's copy has, from the second one on."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source, held = torch.ones(_COPIED, device=device), torch.empty(_COPIED)
    held.copy_(source)  # the system gives the memory at the first writing
    began = time.perf_counter()
    held.copy_(source)
    return source.nbytes / (time.perf_counter() - began)


def sizes_of(config: Config, ranks: list[int]) -> list[int]:
    """Return one or two numbers of pairs to measure: the fewest and the most a rank would have.

    If both are equal, half of it is measured too, where that divides.
    """
    unit = config.engine.micro_batches * config.data.captions_per_image
    shares = sorted({config.data.global_batch // count for count in ranks})
    fewest, most = shares[0], shares[-1]
    if fewest == most and most >= 2 * unit:
        fewest = most // 2 // unit * unit
    return sorted({fewest, most})


def concurrent_ranks(ranks: list[int], *, cores: int, gpus: int) -> list[int]:
    """Return the numbers of concurrent ranks to measure: one, and up to the most of ``ranks``.

    The most is the machine's number of GPUs, or of cores; without GPUs twice the cores is measured
    too, since ranks that share a core slow each other down by more than half.
    """
    full = gpus or cores
    return sorted({1, min(max(ranks), full), min(max(ranks), full if gpus else 2 * full)})


def _write_rate(folder: Path) -> float | None:
    """Return the bytes a second of a checkpoint, on the disk of ``folder``; None if not writable.

    It is written as `Checkpoints` writes: each block hashed as it goes, and safe on disk at the
    end.
    """
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    block = os.urandom(1 << 22)
    try:
        with tempfile.TemporaryFile(dir=above) as file:
            began = time.perf_counter()
            for _ in range(_WRITTEN // len(block)):
                hashlib.sha256(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return None
    return _WRITTEN / (time.perf_counter() - began)


def _computing(steps: list[dict[str, float]], ranks: int, wanted: float) -> Computing:
    """Fit a line to the seconds of one or two numbers of pairs.

    A rank on a CPU needs ``wanted`` cores all the time, even where another program took them.
    """
    few, many = steps[0], steps[-1]
    slope = many["computing"] / many["pairs"]
    if few is not many:
        rise = (many["computing"] - few["computing"]) / (many["pairs"] - few["pairs"])
        # Never steeper than from nothing: noise must not make the fixed part negative.
        slope = min(max(rise, 0.1 * slope), slope)
    return Computing(
        ranks=ranks,
        fixed_seconds=max(0.0, many["computing"] - slope * many["pairs"]),
        pair_seconds=slope,
        cores=max(0.0, max(wanted, many["cores"]) - many["decoding_cores"]),
    )


def _network(found: dict[str, Any]) -> Network:
    """Separate the latency of a message from its bandwidth."""
    ranks, kinds = found["ranks"], {}
    for name, seconds in found["collectives"].items():
        hops = _HOPS[name] * (ranks - 1)
        (small, first), (large, last) = ((int(size), s) for size, s in seconds.items())
        sent = _HOPS[name] * (ranks - 1) / ranks * (large - small)
        speed = sent / max(last - first, 1e-9)
        kinds[name] = Collective(hop_seconds=first / hops, bytes_per_second=speed)
    return Network(**kinds)


def _run(
    config: Config, folder: Path, what: str, given: list[str], *, worlds: int, ranks: int
) -> dict[str, Any]:
    """Start ``worlds`` groups of ``ranks`` processes at once; return the mean of their results."""
    processes, outs = [], []
    for world in range(worlds):
        run = config.run.model_copy(update={"dir": str(folder / f"run-{world}")})
        path, out = folder / f"{world}.yaml", folder / f"{what}-{worlds}-{world}.json"
        path.write_text(config.model_copy(update={"run": run}).to_yaml())
        outs.append(out)
        port = free_port()
        for rank in range(ranks):
            environment = {
                **os.environ, "RANK": str(rank), "WORLD_SIZE": str(ranks),
                "LOCAL_RANK": str(rank if ranks > 1 else world),
                "LOCAL_SIZE": str(max(worlds, ranks)),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            command = [
                sys.executable,
                "-P",
                "-m",
                "vse_scale.planning.rank",
                what,
                path,
                out,
                *given,
            ]
            processes.append(
                subprocess.Popen(
                    [str(part) for part in command], env=environment, text=True,
                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
    try:
        said = [process.communicate()[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said, strict=True):
        if process.returncode:
            raise UserError(f"measuring failed: {(text.strip().splitlines() or ['no reason'])[-1]}")
    found: dict[str, Any] = _mean([read_json(out) for out in outs])
    return found


def _mean(found: list[Any]) -> Any:
    """Average numbers of equal structures."""
    first = found[0]
    if isinstance(first, dict):
        return {key: _mean([one[key] for one in found]) for key in first}
    if isinstance(first, list):
        return [_mean(list(same)) for same in zip(*found, strict=True)]
    return sum(found) / len(found)
