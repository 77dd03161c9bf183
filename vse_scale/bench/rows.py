"""One CSV schema for the results of all stages."""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median, quantiles

import torch

from vse_scale.bench.comparison import Result
from vse_scale.bench.job import Job
from vse_scale.errors import UserError
from vse_scale.run.system import processor


@dataclass(frozen=True)
class Row:
    """One contender on one case.

    Attributes:
        stage: of the benchmark.
        case: what was worked on.
        contender: who worked; this project is "vse_scale", perhaps with more words.
        peer: the contender that the others of the case are compared with.
        unit: of the values. What ends in "/s" is better when more, all else when less.
        median: of the rounds.
        low: their first decile.
        high: their ninth decile.
        times: how many times better than the peer: the median over the rounds of the quotient
            within a round.
        peak_bytes: on a machine with a GPU what torch had allocated there at most; else what the
            contender's processes held together at most; -1 where it was not measured.
        shares: of the time by what it was spent on, such as "data 0.03, update 0.10"; the largest
            binds. Empty where it is not known.
        repeats: timed rounds.
        device: GPU or CPU model.
        threads: CPU cores that each contender could use.
        torch: version; triton, deepspeed, dali and opencv likewise, "none" where it is missing.
        commit: short hash, "-dirty" where the tree differs from it.
    """

    stage: str
    case: str
    contender: str
    peer: str
    unit: str
    median: float
    low: float
    high: float
    times: float
    peak_bytes: int
    shares: str
    repeats: int
    device: str
    threads: int
    torch: str
    triton: str
    deepspeed: str
    dali: str
    opencv: str
    commit: str


def make_rows(
    job: Job,
    stage: str,
    case: str,
    results: Mapping[str, Result],
    *,
    peer: str,
    unit: str,
) -> list[Row]:
    """Describe ``results``, by contender, as rows; ``peer`` is one of them."""
    return [
        row(
            job, stage, case, name, peer=peer, unit=unit,
            values=result.values, peer_values=results[peer].values,
            peak_bytes=result.peak_bytes,
            shares=", ".join(f"{phase} {share:.2f}" for phase, share in result.shares.items()),
        )
        for name, result in results.items()
    ]  # fmt: skip


def row(
    job: Job,
    stage: str,
    case: str,
    contender: str,
    *,
    peer: str,
    unit: str,
    values: Sequence[float],
    peer_values: Sequence[float],
    peak_bytes: int = -1,
    shares: str = "",
) -> Row:
    """Describe one contender's ``values``, one per round, beside the peer's."""
    deciles = quantiles(values, n=10, method="inclusive") if len(values) > 1 else [*values] * 9
    quotients = [own / other for own, other in zip(values, peer_values, strict=True) if other]
    if not unit.endswith("/s"):
        quotients = [1 / quotient for quotient in quotients if quotient]
    return Row(
        stage=stage,
        case=case,
        contender=contender,
        peer=peer,
        unit=unit,
        median=_rounded(median(values)),
        low=_rounded(deciles[0]),
        high=_rounded(deciles[-1]),
        times=_rounded(median(quotients)) if quotients else float("nan"),
        peak_bytes=peak_bytes,
        shares=shares,
        repeats=len(values),
        device=device_name(job.device),
        threads=job.cores,
        commit=commit(),
        **versions(),
    )


def versions() -> dict[str, str]:
    """Return the versions of what decides about speed, by the name of the column."""
    packages = {
        "torch": "torch",
        "triton": "triton",
        "deepspeed": "deepspeed",
        "dali": "nvidia-dali-cuda130",
        "opencv": "opencv-python-headless",
    }
    return {column: _version(package) for column, package in packages.items()}


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the CPU's with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {os.cpu_count()} CPUs"


@functools.cache  # asked before results are written into the checkout
def commit() -> str:
    """Return the short hash of the sources, "unknown" outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            check=False,
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def append(path: Path, rows: Iterable[Row]) -> None:
    """Append to a CSV, with its header where it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read(path: Path) -> list[Row]:
    """Read what `append` wrote.

    Raises:
        UserError: the file is missing or of another schema.
    """
    names = [field.name for field in fields(Row)]
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; vse-scale bench --out writes it")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != names:
            raise UserError(f"{path}: its columns are not {','.join(names)}; name another file")
        return [_parsed(line) for line in reader]


def _parsed(line: dict[str, str]) -> Row:
    kinds = {"int": int, "float": float, "str": str}
    return Row(**{field.name: kinds[str(field.type)](line[field.name]) for field in fields(Row)})


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
