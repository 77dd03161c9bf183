"""The stages of the benchmark, their requirements, and the choice among them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vse_scale.bench.job import Job
from vse_scale.bench.rows import Row
from vse_scale.bench.scripts import REPOSITORY
from vse_scale.errors import ConfigError, UserError

Need = Callable[[], str | None]
"""Returns one line that names a missing requirement and its remedy, or None."""


def opencv() -> str | None:
    """Look for OpenCV, with which a peer decodes."""
    if importlib.util.find_spec("cv2") is None:
        return "needs OpenCV, a peer to measure against; pip install 'vse-scale[bench]'"
    return None


def checkout() -> str | None:
    """Look for the scripts that measure kernels and shards, which only a checkout has."""
    if not (REPOSITORY / "kernels" / "benchmarks").is_dir():
        return "runs scripts of the repository, which is not there; run it from a checkout"
    return None


@dataclass(frozen=True)
class Stage:
    """A stage: the module whose ``measure(job)`` yields its rows, case by case."""

    module: str
    needs: tuple[Need, ...] = ()

    def missing(self) -> str | None:
        """Return the first missing requirement as one line, or None."""
        return next(filter(None, (need() for need in self.needs)), None)

    def measure(self, job: Job) -> Iterator[list[Row]]:
        """Yield the rows of each case."""
        rows: Iterator[list[Row]] = importlib.import_module(self.module).measure(job)
        return rows


STAGES: dict[str, Stage] = {
    "loader": Stage("vse_scale.bench.loader", (opencv,)),
    "decode": Stage("vse_scale.bench.decode", (opencv,)),
    "kernels": Stage("vse_scale.bench.kernels", (checkout,)),
    "step": Stage("vse_scale.bench.step"),
    "train": Stage("vse_scale.bench.train", (opencv,)),
    "eval": Stage("vse_scale.bench.evaluate", (opencv,)),
    "shards": Stage("vse_scale.bench.shards", (checkout,)),
    "loss": Stage("vse_scale.bench.loss"),
}


def choose(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the stages to run, and one line on each that cannot run; all if none are named.

    Raises:
        ConfigError: there is no such stage.
        UserError: a named one cannot run here.
    """
    for name in names:
        if name not in STAGES:
            raise ConfigError(f"{name}: there is no such stage; choose from {', '.join(STAGES)}")
        if (missing := STAGES[name].missing()) is not None:
            raise UserError(f"{name}: {missing}")
    found = {name: STAGES[name].missing() for name in names or STAGES}
    left_out = [f"{name}: {missing}" for name, missing in found.items() if missing is not None]
    return [name for name, missing in found.items() if missing is None], left_out
