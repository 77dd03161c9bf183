"""Rows of the stages' results, in the schema of `vse_kernels.measurements`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vse_kernels import measurements
from vse_kernels.measurements import Row
from vse_scale.bench.comparison import Result
from vse_scale.bench.job import Job
from vse_scale.errors import UserError

__all__ = ["Row", "append", "make_rows", "read", "row"]


def make_rows(
    job: Job,
    stage: str,
    case: str,
    results: Mapping[str, Result],
    *,
    peer: str,
    unit: str,
) -> list[Row]:
    """Return a row for each of ``results``, by implementation; ``peer`` is one of them."""
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
    implementation: str,
    *,
    peer: str,
    unit: str,
    values: Sequence[float],
    peer_values: Sequence[float],
    peak_bytes: int = -1,
    shares: str = "",
) -> Row:
    """Return the row of one implementation, by its ``values`` and the peer's, one per round."""
    return measurements.make_row(
        stage,
        case,
        implementation,
        peer=peer,
        unit=unit,
        values=values,
        peer_values=peer_values,
        device=job.device,
        threads=job.cores,
        peak_bytes=peak_bytes,
        shares=shares,
    )


def append(path: Path, rows: Sequence[Row]) -> None:
    """Append rows to a CSV, with a header if it is new.

    Raises:
        UserError: the file has other columns.
    """
    try:
        measurements.append(path, rows)
    except ValueError as error:
        raise UserError(str(error)) from None


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV that this or an earlier release wrote.

    Raises:
        UserError: the file is missing or has other columns.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; vse-scale bench --out writes it")
    try:
        return measurements.read(path)
    except ValueError as error:
        raise UserError(str(error)) from None
