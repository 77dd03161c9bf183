"""Prints how far `vse-scale plan` is off on this machine, in time and memory, at 1, 2 and 4 ranks.

Usage: PYTHONPATH=tests/support python tests/planning/scaling_error.py [CONFIG] [KEY=VALUE ...]

Without a configuration: the demonstration's model at 64 pairs a step, on scenes that it draws. The
machine should have nothing else to do. Constants are measured first, as ``plan --measure`` does;
then runs of `STEPS` steps are trained by `vse-scale train`, and one is watched by torch's profiler
under each ZeRO stage.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from commandline import installed
from ranks import run_ranks

from vse_scale.config import Config
from vse_scale.model.blueprint import blueprint
from vse_scale.planning.measure import measure_machine
from vse_scale.planning.memory import Batches, memory_bytes
from vse_scale.planning.steps import step_time
from vse_scale.planning.traffic import STAGES, Workload
from vse_scale.run.journal import read_journal
from vse_shards.build import BuildOptions, build
from vse_shards.demo import make_demo
from vse_shards.sources.jsonl import JsonlSource

REPOSITORY = Path(__file__).parents[2]
RANKS = (1, 2, 4)
STEPS, WARM_UP = 25, 5
# All of the model trains from the first step on, and nobody else takes time.
SETTINGS = (
    "train.frozen_backbone_epochs=0", "objective.warmup_epochs=0",
    f"train.max_steps={STEPS}", "train.epochs=100",
    "eval.every_epochs=100", "eval.every_steps=null",
    "telemetry.prometheus_port=null", "telemetry.tensorboard=false",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One quantity on one number of ranks."""

    ranks: int
    what: str
    planned: float
    measured: float

    @property
    def error(self) -> float:
        return self.planned / self.measured - 1


def compare(path: Path, overrides: list[str], scratch: Path) -> list[Line]:
    """Plan and measure ``path`` with ``overrides``."""
    given = [*overrides, *SETTINGS]
    config = Config.load(path, given)
    constants = measure_machine(config, list(RANKS))
    bfloat16 = config.engine.precision == "bfloat16"
    work = Workload.of(config, bfloat16=bfloat16)
    stage = config.engine.zero_stage
    lines = []
    for ranks in RANKS:
        run = scratch / f"run-{ranks}"
        _train(["--ranks", str(ranks), "--config", str(path), *given, f"run.dir={run}"])
        records = read_journal(run / "metrics.jsonl")[WARM_UP:]
        seconds = mean(record["seconds"]["step"] for record in records)
        planned = step_time(work, constants, stage, ranks).total
        lines.append(Line(ranks, f"s a step, ZeRO-{stage}", planned, seconds))
    return lines + _memory(config, work, scratch, bfloat16=bfloat16)


def _train(arguments: list[str]) -> None:
    """Train as a user would, who leaves the number of threads to the command."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [installed("vse-scale"), "train", *arguments]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def _memory(config: Config, work: Workload, scratch: Path, *, bfloat16: bool) -> list[Line]:
    path, out = scratch / "memory.yaml", scratch / "memory.json"
    path.write_text(config.to_yaml())
    model, _ = blueprint(config)
    # Of stage 3, on a CPU: a copy of all weights, and small ones that stay whole.
    aside = 4 * sum(p.numel() * (1 + (p.numel() <= 100_000)) for p in model.parameters())
    lines = []
    for ranks in RANKS:
        worker = Path(__file__).with_name("rank_of_scaling.py")
        run_ranks(ranks, worker, path, out, scratch / f"kept-{ranks}", timeout=3600)
        found = json.loads(out.read_text())
        tokens = found["0"]["tokens"]
        batches = Batches.of(config, work, ranks, tokens=tokens, cuda=False, bfloat16=bfloat16)
        for stage in STAGES:
            planned = sum(memory_bytes(work, batches, stage, ranks).values())
            planned += aside if stage == 3 else 0
            real = found[str(stage)]["peak"]
            lines.append(Line(ranks, f"MB, ZeRO-{stage}", planned / 1e6, real / 1e6))
    return lines


def main(arguments: list[str]) -> list[Line]:
    """Compare, and print a table."""
    overrides = [argument for argument in arguments if "=" in argument]
    paths = [Path(argument) for argument in arguments if "=" not in argument]
    with tempfile.TemporaryDirectory(prefix="vse-scaling-") as folder:
        scratch = Path(folder)
        if not paths:
            source = scratch / "source"
            make_demo(source, images=600)
            rows = JsonlSource(str(source / "captions.jsonl"), str(source))
            build(rows, str(scratch / "shards"), BuildOptions(shard_samples=128))
            paths = [REPOSITORY / "launch" / "recipes" / "demo.yaml"]
            overrides = [f"data.path={scratch / 'shards'}", "data.global_batch=64", *overrides]
        lines = compare(paths[0], overrides, scratch)
    print("| ranks | | planned | measured | error |\n|---|---|---|---|---|")
    for line in lines:
        print(
            f"| {line.ranks} | {line.what} | {line.planned:.3g} | {line.measured:.3g} "
            f"| {line.error:+.0%} |"
        )
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
