"""The report of a run that goes on: written again as the run writes, and reloaded by a browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from vse_scale.report.data import KnownFindings
from vse_scale.report.page import write_report
from vse_scale.run.folder import RunFolder, RunRecords

EVERY = 10  # seconds between two looks


def follow_run(
    run_dir: Path,
    out: Path | None = None,
    *,
    wait: Callable[[float], None] = time.sleep,
    told: Callable[[Path], None] = lambda _: None,
) -> None:
    """Write the report of a run again and again, until the run is over.

    It has the figures and curves, and no examples: these would take a model's time each time.

    Args:
        run_dir: the run's folder.
        out: the file to write; report.html in its folder by default.
        wait: called with seconds between two looks.
        told: called with the file once it is there.

    Raises:
        OutputError: the folder is missing or damaged.
    """
    folder, seen = RunFolder(run_dir), None
    while True:
        began = time.perf_counter()
        over = folder.done_file.is_file()
        if (now := _written(folder)) != seen or over:
            first, seen = seen is None, now
            records = RunRecords.load(run_dir)
            written = write_report(out, records, KnownFindings(), None if over else EVERY)
            if first:
                told(written)
        if over:
            return
        # A long run's records take a while to read: at most a tenth of the time.
        wait(max(EVERY, 9 * (time.perf_counter() - began)))


def _written(folder: RunFolder) -> tuple[int, ...]:
    """Return the sizes of the records, which grow with each of them."""
    files = (folder.steps_file, folder.evaluations_file, folder.config_file)
    return tuple(file.stat().st_size if file.is_file() else 0 for file in files)
