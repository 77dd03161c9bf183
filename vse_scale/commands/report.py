"""``vse-scale report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vse_scale.commands.common import Checkpoint, best_device, check_writable, chosen_model
from vse_scale.console import log, progress_of_encoding
from vse_scale.errors import ConfigError
from vse_shards.terminal import tell


def report(
    run: Annotated[
        list[Path], typer.Option(help="a run's folder; given twice, the runs stand side by side")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="default: report.html in the run's folder; compare.html for two"),
    ] = None,
    checkpoint: Checkpoint = None,
    threads: Annotated[int, typer.Option(min=1, help="decoding threads")] = 2,
) -> None:
    """Write a run's report, or two side by side: one HTML file that opens without a network."""
    if len(run) > 2:
        raise ConfigError(f"{len(run)} runs were given; the report shows one, or two side by side")
    check_writable("--out", out)
    model = chosen_model(run[0], checkpoint) if checkpoint else None
    if model is not None and len(run) == 2:
        raise ConfigError("--checkpoint is for the report of one run; give one --run")
    log.info("writing the report of %s", " and ".join(map(str, run)))
    if len(run) == 2:
        from vse_scale.report.compare import compare_runs

        tell(f"report: {compare_runs(run[0], run[1], out or Path('compare.html'))}")
        return
    from vse_scale.report.from_run import report_run

    with progress_of_encoding() as progress:
        written = report_run(
            run[0], out, device=best_device(), threads=threads, progress=progress, model=model
        )
    tell(f"report: {written}")
