"""The CSV schema of all benchmarks: those of kernels, and every stage of ``vse-scale bench``."""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from statistics import median, quantiles

import torch

# Packages that decide about speed, by the column of their version.
_PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "deepspeed": "deepspeed",
    "dali": "nvidia-dali-cuda130",
    "opencv": "opencv-python-headless",
}
# Former names of columns, so that files of earlier releases stay readable.
_FORMER = {"contender": "implementation"}


@dataclass(frozen=True)
class Row:
    """Result of one implementation on one case.

    Attributes:
        stage: stage of the benchmark, such as "kernels".
        case: the work, such as "gpo_pool inference, 64x36x1024, float32".
        implementation: its name; this project is "vse_scale", perhaps with more words.
        peer: the implementation that the others of the case are compared with.
        unit: unit of the values. More is better if it ends in "/s", else less is better.
        median: median over the rounds.
        low: first decile of the rounds.
        high: ninth decile of the rounds.
        times: how many times better than the peer: the median over the rounds of the quotient
            within a round.
        peak_bytes: peak memory; -1 if not measured. On a GPU, bytes allocated by torch, of a kernel
            beyond its operands; else bytes held by all processes of the implementation.
        shares: time by phase, such as "data 0.03, update 0.10"; the largest phase is the
            bottleneck. Empty if not measured.
        repeats: number of timed rounds.
        device: GPU or CPU model.
        threads: CPU cores that each implementation may use.
        torch: version; triton, deepspeed, dali and opencv likewise, "none" if not installed.
        commit: short hash, "-dirty" if the tree differs from it.
        result_bytes: part of a kernel's ``peak_bytes`` that any implementation must store, its
            results; -1 if not measured.
    """

    stage: str
    case: str
    implementation: str
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
    result_bytes: int = -1


def make_row(
    stage: str,
    case: str,
    implementation: str,
    *,
    peer: str,
    unit: str,
    values: Sequence[float],
    peer_values: Sequence[float],
    device: torch.device,
    threads: int,
    peak_bytes: int = -1,
    result_bytes: int = -1,
    shares: str = "",
) -> Row:
    """Return the row of one implementation.

    Args:
        stage: see `Row`, as for the other arguments that are columns.
        case: see `Row`.
        implementation: see `Row`.
        peer: see `Row`.
        unit: see `Row`.
        values: one per round.
        peer_values: the peer's, of the same rounds.
        device: device of the measurement.
        threads: see `Row`.
        peak_bytes: see `Row`.
        result_bytes: see `Row`.
        shares: see `Row`.
    """
    deciles = quantiles(values, n=10, method="inclusive") if len(values) > 1 else [*values] * 9
    quotients = [own / other for own, other in zip(values, peer_values, strict=True) if other]
    if not unit.endswith("/s"):
        quotients = [1 / quotient for quotient in quotients if quotient]
    return Row(
        stage=stage,
        case=case,
        implementation=implementation,
        peer=peer,
        unit=unit,
        median=_rounded(median(values)),
        low=_rounded(deciles[0]),
        high=_rounded(deciles[-1]),
        times=_rounded(median(quotients)) if quotients else float("nan"),
        peak_bytes=peak_bytes,
        result_bytes=result_bytes,
        shares=shares,
        repeats=len(values),
        device=device_name(device),
        threads=threads,
        commit=commit(),
        **versions(),
    )


def append(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a CSV, with a header if it is new; a file of an earlier release keeps its own.

    Raises:
        ValueError: the file has other columns.
    """
    names = [field.name for field in fields(Row)]
    header = _header(path)
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if header is None:
            writer.writerow(names)
        for row in rows:
            values = asdict(row)
            writer.writerow(values[_FORMER.get(name, name)] for name in header or names)


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV that this or an earlier release wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has other columns.
    """
    header = _header(path)
    with path.open(newline="") as file:
        lines = csv.reader(file)
        next(lines, None)
        names = [_FORMER.get(name, name) for name in header or ()]
        return [_parsed(dict(zip(names, line, strict=True))) for line in lines]


def _header(path: Path) -> list[str] | None:
    """Return the names of the columns, None if the file is missing or empty."""
    if not path.exists():
        return None
    with path.open(newline="") as file:
        header = next(csv.reader(file), None)
    if header is None:
        return None
    known = {field.name for field in fields(Row)}
    required = {field.name for field in fields(Row) if field.default is MISSING}
    names = {_FORMER.get(name, name) for name in header}
    if not required <= names <= known:
        expected = ",".join(field.name for field in fields(Row))
        raise ValueError(f"{path}: its columns are not {expected}; name another file")
    return header


def _parsed(line: dict[str, str]) -> Row:
    kinds = {"int": int, "float": float, "str": str}
    types = {field.name: kinds[str(field.type)] for field in fields(Row)}
    return Row(**{name: types[name](value) for name, value in line.items()})


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the CPU's with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {os.cpu_count()} CPUs"


def processor() -> str:
    """Return the name of the CPU's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of packages that decide about speed, by column."""
    return {column: _version(package) for column, package in _PACKAGES.items()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


@functools.cache  # before results are written into the checkout, which would make it dirty
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


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
