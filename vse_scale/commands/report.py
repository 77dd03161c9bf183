"""``vse-scale report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vse_scale.commands.common import (
    Checkpoint,
    Threads,
    best_device,
    check_writable,
    chosen_model,
)
from vse_scale.console import log, progress_of_encoding
from vse_scale.errors import ConfigError
from vse_scale.run.folder import RunFolder
from vse_shards.terminal import tell


def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help="runs' folders, as by --run; or a folder of runs"),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="a run's folder; two stand side by side, more in a table"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="default: report.html in the run's folder; compare.html for two; runs.html"
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="write it again as the run goes on; browsers reload it"),
    ] = False,
    threads: Threads = 2,
) -> None:
    """Write the report of a run, or of several, as one HTML file.

    It opens without a network. Runs that differ by run.seed alone have their mean and deviation
    in the table of several. With --follow the page of a run is written again every ten seconds
    until the run is over.
    """
    check_writable("--out", out)
    runs, title, table = _chosen(folders, run)
    model = chosen_model(runs[0], checkpoint) if checkpoint else None
    if model is not None and (len(runs) > 1 or title):
        raise ConfigError("--checkpoint is for the report of one run; give one --run")
    if follow:
        _follow(runs, title, model, out)
    log.info("writing the report of %s", title or " and ".join(map(str, runs)))
    if title:
        from vse_scale.report.overview import write_overview

        tell(f"report: {write_overview(runs, out or table, title)}")
        return
    if len(runs) == 2:
        from vse_scale.report.compare import compare_runs

        tell(f"report: {compare_runs(runs[0], runs[1], out or Path('compare.html'))}")
        return
    from vse_scale.report.from_run import report_run

    with progress_of_encoding() as progress:
        written = report_run(
            runs[0], out, device=best_device(), threads=threads, progress=progress, model=model
        )
    tell(f"report: {written}")


def _follow(runs: list[Path], title: str, model: Path | None, out: Path | None) -> None:
    """Write the report of a run until it is over; refuse several, and a checkpoint's."""
    if len(runs) > 1 or title or model is not None:
        raise ConfigError("--follow is for one run without --checkpoint; give one --run")
    from vse_scale.report.follow import EVERY, follow_run

    def told(written: Path) -> None:
        log.info("open %s in a browser: it reloads every %d s; Ctrl-C ends this", written, EVERY)

    try:
        follow_run(runs[0], out, told=told)
    except KeyboardInterrupt:
        raise typer.Exit from None  # the page stays as it is


def _chosen(folders: list[Path] | None, runs: list[Path] | None) -> tuple[list[Path], str, Path]:
    """Return the runs that were asked for, and of a table of many the title and the file."""
    if bool(folders) == bool(runs):
        raise ConfigError("give the folder of a run or of several, or one --run and more")
    given, table = [*(folders or []), *(runs or [])], Path("runs.html")
    if runs or len(given) > 1:
        return given, f"{len(given)} runs" if len(given) > 2 else "", table
    (folder,) = given
    if not folder.is_dir() or RunFolder(folder).config_file.is_file():
        return given, "", table  # where it is no folder, the report of one says so
    from vse_scale.report.overview import runs_in

    found = runs_in(folder)
    return found, f"Runs in {folder.resolve().name}", folder / "runs.html"
