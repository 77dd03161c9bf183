"""Training on one rank and one thread of a CPU, and how far two machines can agree on it.

The order in which numbers are added, and so how sums are rounded, is chosen by the release of torch
and by the processor: torch's own kernels ask for its vector instructions, MKL and oneDNN for more.
Where all of these are the same a run repeats bit for bit. Elsewhere its first step differs by
roundings, and every step multiplies what the one before it left: Adam divides a gradient by its own
size, so that one close to 0 moves a weight as far as another. With narrower instructions five steps
of the golden recipes differed by up to 2e-5, and the loss of step 20 by up to 4e-4.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import environment_without_launcher

# Another machine repeats so many steps within the first tolerance, and the loss of the others
# within the second, relative; a number near 0 is what is left of larger ones: the absolute one.
COMPARABLE_STEPS = 5
TOLERANCE, LATER_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-4, 1e-2, 1e-5
NUMBERS = (
    "loss", "gradient_norm", "violating", "positive_similarity", "hardest_similarity",
)  # fmt: skip


def this_machine() -> dict[str, str]:
    """Return what decides how sums are rounded."""
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
    }


def _processor() -> str:
    """Name the generation: the brand that a cloud shows may stand for several."""
    with open("/proc/cpuinfo") as file:
        lines = [line.split(":", 1) for line in file if ":" in line]
    facts = {key.strip(): value.strip() for key, value in reversed(lines)}
    wanted = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")
    return " ".join(facts[key] for key in wanted if key in facts)


def one_rank_environment() -> dict[str, str]:
    """Return an environment without a launcher, without a GPU, and with one thread."""
    return environment_without_launcher() | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


TRAINING = ("-m", "vse_scale.training")


def train_on_one_rank(
    config: Path, *overrides: str, timeout: float = 600, program: Sequence[str] = TRAINING
) -> str:
    """Train to the end of the schedule, and return what the run said.

    Args:
        config: of the run.
        *overrides: of its settings.
        timeout: in seconds.
        program: arguments of Python before those of the run.
    """
    quiet = ("telemetry.prometheus_port=null", "telemetry.tensorboard=false")
    done = subprocess.run(
        [sys.executable, *program, "--config", str(config), *quiet, *overrides],
        capture_output=True, text=True, timeout=timeout, env=one_rank_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def records(journal: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's ``metrics.jsonl`` or ``evaluations.jsonl``."""
    return [json.loads(line) for line in journal.read_text().splitlines()]


def compare_across_machines(
    found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]
) -> None:
    """Compare steps, from identical weights on, as far as two machines can agree on them."""
    assert len(found) == len(expected)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert [ours[k] for k in ("objective", "applied")] == [
            theirs[k] for k in ("objective", "applied")
        ]
        early = number < COMPARABLE_STEPS
        for name in NUMBERS if early else ("loss",):
            assert ours[name] == pytest.approx(
                theirs[name],
                rel=TOLERANCE if early else LATER_TOLERANCE,
                abs=ABSOLUTE_TOLERANCE,
            ), f"{name} of step {ours['step']}"
