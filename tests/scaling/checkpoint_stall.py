"""Seconds that the steps of two ranks wait for a checkpoint, and memory, in four ways to write it.

    python tests/scaling/checkpoint_stall.py [LAYERS] [REPEATS]

prints the table of docs/scaling.md. Two ranks hold a model with a text tower of so many layers (12
are 100 million parameters) under the default ZeRO stage. In turn, so that all meet the same
machine, each repeat takes a checkpoint

- behind the steps: `Writer`, whose thread ends before the next is begun, and gathers;
- each rank its part: the same, as it writes checkpoints of more than run.gather_gb;
- before the eyes of all: gathered by DeepSpeed's calls, written by safetensors' library, read again
  to be hashed, synced and renamed while every rank waits, as it was done until release 0.9;
- by torch.distributed.checkpoint.async_save of what each rank holds, in its own format.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from order_scaling import memory
from torch import Tensor

RANKS = 2
LAYERS, REPEATS = 12, 3
WAYS = ("behind the steps", "each rank its part", "before the eyes of all", "DCP async_save")


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--rank"]:
        measure(int(arguments[1]), int(arguments[2]), Path(arguments[3]))
        return
    layers, repeats = (int(number) for number in (*arguments, *(LAYERS, REPEATS)[len(arguments) :]))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS),
             "--master-port", "0", "--standalone", __file__, "--rank", str(layers), str(repeats),
             folder],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found = json.loads((Path(folder) / "found.json").read_text())
    print(f"{found['parameters'] / 1e6:.1f} million parameters, {RANKS} ranks")
    print("| checkpoint | steps wait, s (each) | done after, s | MB more |")
    print("|---|---:|---:|---:|")
    for way in WAYS:
        stalls, whole = found[way]["stall"], found[way]["whole"]
        each = ", ".join(f"{one:.2f}" for one in stalls)
        print(
            f"| {way} | {statistics.median(stalls):.2f} ({each}) | {statistics.median(whole):.1f} "
            f"| {max(found[way]['more']):.0f} |"
        )


@dataclass
class Times:
    """Seconds of the slowest rank: that it waited, and until the checkpoint was there.

    And the most memory, in units of 10**6 bytes, that the first rank took meanwhile.
    """

    stall: list[float]
    whole: list[float]
    more: list[float]


def measure(layers: int, repeats: int, folder: Path) -> None:
    """Time all ways in turn, and write what was found to ``folder``."""
    from vse_scale.training.checkpoint import Checkpoints
    from vse_scale.training.writer import Writer
    from vse_scale.world.join import join_world

    world = join_world(600)
    engine = engine_of(layers, world)
    writer, parts = (
        Writer(Checkpoints(folder / f"{gb}", keep=1), world, 600, lambda written: None, gb)
        for gb in (math.inf, 0)
    )
    gloo = dist.new_group(backend="gloo")
    ways: dict[str, Callable[[int], Callable[[], object]]] = {
        WAYS[0]: lambda step: (writer.begin(engine, state_of(step)), writer.finish)[1],
        WAYS[1]: lambda step: (parts.begin(engine, state_of(step)), parts.finish)[1],
        WAYS[2]: lambda step: written_before_all(engine, world, folder / "before"),
        WAYS[3]: lambda step: saved_by_torch(engine, folder / f"dcp-{step}", gloo),
    }
    found = {way: Times([], [], []) for way in ways}
    for step in range(1, repeats + 1):
        for way, begin in ways.items():
            world.barrier()
            before = memory_from_now()
            began = time.perf_counter()
            finish = begin(step)
            stall = time.perf_counter() - began
            finish()
            times = torch.tensor([stall, time.perf_counter() - began])
            world.across(times, "max")
            found[way].stall.append(float(times[0]))
            found[way].whole.append(float(times[1]))
            found[way].more.append(memory() - before)
    if world.main:
        parameters = sum(parameter.numel() for parameter in engine.model.parameters())
        kept = {way: vars(times) for way, times in found.items()}
        (folder / "found.json").write_text(json.dumps({"parameters": parameters, **kept}))
    dist.barrier()
    dist.destroy_process_group()


def memory_from_now() -> float:
    """Forget the most memory that this process has had, and return what it has."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory()


def engine_of(layers: int, world):
    from vse_scale.config import Config
    from vse_scale.model.vse import VSEModel
    from vse_scale.objective.registry import objective_of
    from vse_scale.training.engine import Engine

    width = 768 if layers >= LAYERS else 64
    tower = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2,
        "intermediate_size": 4 * width,
    }  # fmt: skip
    model = {"image": {"backbone": "tiny", "size": 32}, "text": {"architecture": tower}}
    data = {"path": "unused", "global_batch": 8}
    config = Config.parse({"data": data, "run": {"dir": "unused"}, "model": model})
    built = VSEModel(config.model, 16_000 if layers >= LAYERS else 100, 0)
    return Engine(built.to(world.device), config, world, objective_of(config.objective))


def state_of(step: int):
    from vse_scale.training.run_state import RunState

    return RunState(step=step, fingerprint="made", config={})


def written_before_all(engine, world, folder: Path) -> Callable[[], object]:
    from deepspeed.utils import safe_get_full_optimizer_state
    from safetensors.torch import save_file

    from vse_scale.files import whole_folder

    kept: dict[str, Tensor] = {}

    def take(name: str, value: Tensor) -> None:
        if world.main:
            kept[name] = value.detach().to("cpu", copy=True).contiguous()

    for name, parameter in engine.model.named_parameters():
        take(f"model.{name}", parameter)
        for moment in engine.optimizer.moments:
            take(f"{moment}.{name}", safe_get_full_optimizer_state(parameter, moment))
    if world.main:
        with whole_folder(folder) as partial:
            save_file(kept, partial / "state.safetensors")
            with (partial / "state.safetensors").open("rb") as file:
                (partial / "digest").write_text(hashlib.file_digest(file, "sha256").hexdigest())
    world.barrier()
    return lambda: None


def saved_by_torch(engine, folder: Path, group: dist.ProcessGroup) -> Callable[[], object]:
    import torch.distributed.checkpoint as dcp

    rank = dist.get_rank()
    state: dict[str, Tensor] = {
        f"model.{n}": p.detach() for n, p in engine.model.named_parameters()
    }
    for group_number, (_, master) in enumerate(engine._masters()):
        for moment in engine.optimizer.moments:
            state[f"{moment}.{group_number}.of-rank-{rank}"] = engine.optimizer.state[master][
                moment
            ]
    saving = dcp.async_save(state, checkpoint_id=str(folder), process_group=group)
    return saving.result


if __name__ == "__main__":
    main(sys.argv[1:])
