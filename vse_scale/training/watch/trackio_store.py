"""A run in trackio: the database of this machine that ``trackio show`` reads."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout

from vse_scale.config import Config
from vse_scale.run.folder import RunFolder
from vse_scale.training.watch.tracker import PROJECT, Held, Row, Tracker, run_name


class Trackio(Tracker):
    """Logs a run's records by step; a validation has a row of its own."""

    package = "trackio"

    def open(self, config: Config, folder: RunFolder, identity: str) -> Held:
        """Begin the run, or go on with it; its name is the folder's with its identity."""
        with redirect_stdout(sys.stderr):  # it greets
            import trackio
            from trackio.sqlite_storage import SQLiteStorage

            # Two runs of one name would be one run to it.
            project, name = os.environ.get("TRACKIO_PROJECT", PROJECT), run_name(folder)
            name = f"{name}-{identity}"
            self._run = trackio.init(
                project=project, name=name, resume="allow", config=config.recorded(), embed=False
            )
            logged = SQLiteStorage.get_logs(project, name)
        steps, evaluations = (
            [int(row["step"]) for row in logged if key in row] for key in ("loss", "rsum")
        )
        return Held(max(steps, default=-1), max(evaluations, default=-1))

    def send(self, rows: list[Row]) -> None:
        """Log ``rows``; trackio's own thread stores them."""
        for row in rows:
            self._run.log(dict(row.scalars), step=row.step)

    def end(self, complete: bool) -> None:
        """Store what waits; trackio knows no run that failed."""
        with redirect_stdout(sys.stderr):
            self._run.finish()
