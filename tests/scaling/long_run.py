"""Time and memory to resume, finish and report a run of a million steps.

    python tests/scaling/long_run.py [STEPS]

prints the table of docs/scaling.md. Each is done in a process of its own, on made records.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from order_scaling import memory

from vse_scale.run.records import StepRecord

STEPS = 1_000_000
KINDS = ("resume", "finish", "report")


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        print(measured(Path(arguments[1]), arguments[2], int(arguments[3])))
        return
    steps = int(float(arguments[0])) if arguments else STEPS
    print(f"{steps:,} steps")
    print("| | s of the processor | MB, of it before |")
    print("|---|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), steps)
        for kind in KINDS:
            row = subprocess.run(
                [sys.executable, __file__, "--one", name, kind, str(steps)],
                check=True, capture_output=True, text=True,
            ).stdout.strip()  # fmt: skip
            print(f"| {kind} | {row} |", flush=True)


def make(folder: Path, steps: int) -> None:
    """Write the records of a run of so many steps, 1,000 an epoch."""
    generator = np.random.default_rng(0)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(steps):
            file.write(json.dumps(record(step, generator.random(12).tolist()).to_json()) + "\n")
    (folder / "config.yaml").write_text("data: {global_batch: 128}\n")


def record(step: int, drawn: list[float]) -> StepRecord:
    phases = ("data", "forward", "objective", "backward", "optimizer", "communication", "step")
    return StepRecord(
        step=step, epoch=step // 1000, epoch_fraction=(step + 1) / 1000,
        objective="all" if step < 1000 else "hardest", loss=drawn[0],
        learning_rate={"heads": 5e-4, "text": 5e-5, "backbone": 5e-6}, gradient_norm=drawn[1],
        pairs_per_second=1000 * drawn[2], bytes_sent=4096,
        statistics={"violating": drawn[3], "positive_similarity": drawn[4],
                    "hardest_similarity": drawn[5]},
        seconds=dict(zip(phases, (*drawn[6:], sum(drawn[6:])), strict=True)),
    )  # fmt: skip


def measured(folder: Path, kind: str, steps: int) -> str:
    """Return the cells of a row: seconds, and megabytes at most and before."""
    from vse_scale.report.from_run import report_run
    from vse_scale.run.folder import RunFolder
    from vse_scale.training.resumed import open_journals, results_of
    from vse_scale.training.run_state import RunState

    run = RunFolder(folder)
    before, began = memory(), time.process_time()
    if kind == "resume":
        for journal in open_journals(run, steps):
            journal.close()
    elif kind == "finish":
        found = results_of(RunState(steps, "", {}), 128, run.each_step(), [], "val")
        assert found.train_seconds is not None
    else:
        report_run(folder, device="cpu", threads=1)
    return f"{time.process_time() - began:.1f} | {memory():.0f}, {before:.0f}"


if __name__ == "__main__":
    main(sys.argv[1:])
