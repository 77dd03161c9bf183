"""A run in MLflow: a database in the run's folder, or where ``MLFLOW_TRACKING_URI`` says."""

from __future__ import annotations

import os
import time
from typing import Any

from vse_scale.config import Config
from vse_scale.config.resume import flat
from vse_scale.run.folder import RunFolder
from vse_scale.training.watch.tracker import PROJECT, Held, Row, Tracker, run_name

_IDENTITY = "vse_scale.identity"
_STEP, _EVALUATED = "trained_step", "evaluated_step"
# Of one call, as the service has them.
_METRICS, _PARAMETERS = 1000, 100
_LONGEST = 500  # characters of a parameter that every store takes


class MLflow(Tracker):
    """Logs the figures of each step in one call, which a database takes whole or not at all."""

    package = "mlflow"

    def open(self, config: Config, folder: RunFolder, identity: str) -> Held:
        """Find the run by its tag, or create it with the configuration as parameters."""
        # Read at the import; MLflow would report its use to its makers.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        own = f"sqlite:///{folder.path.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or own)
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), folder)
        found = self._client.search_runs([experiment], f"tags.`{_IDENTITY}` = '{identity}'")
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            tags = {_IDENTITY: identity}
            made = self._client.create_run(experiment, tags=tags, run_name=run_name(folder))
            self._run = made.info.run_id
            settings = [
                Param(key, str(value)[:_LONGEST]) for key, value in flat(config.recorded()).items()
            ]
            for first in range(0, len(settings), _PARAMETERS):
                self._client.log_batch(self._run, params=settings[first : first + _PARAMETERS])
        self._watch_system()
        latest = self._client.get_run(self._run).data.metrics
        return Held(*(int(latest.get(key, -1)) for key in (_STEP, _EVALUATED)))

    def send(self, rows: list[Row]) -> None:
        """Log ``rows``, as many in a call as it takes."""
        from mlflow.entities import Metric

        now, batch = int(time.time() * 1000), list[Any]()
        for row in rows:
            own = _EVALUATED if row.validates else _STEP
            # Last, as stores of files take one after the other: it says that the row is whole.
            figures = {**row.scalars, own: row.step}
            metrics = [Metric(name, float(v), now, row.step) for name, v in figures.items()]
            if len(batch) + len(metrics) > _METRICS:
                self._client.log_batch(self._run, metrics=batch)
                batch = []
            batch += metrics
        self._client.log_batch(self._run, metrics=batch)

    def end(self, complete: bool) -> None:
        """Mark the run as finished, or as killed where it goes on later."""
        self._monitor.finish()
        self._client.set_terminated(self._run, status="FINISHED" if complete else "KILLED")

    def _experiment(self, name: str, folder: RunFolder) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        given = "MLFLOW_TRACKING_URI" in os.environ
        place = None if given else (folder.path.resolve() / "mlflow").as_uri()
        return str(self._client.create_experiment(name, artifact_location=place))

    def _watch_system(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            self._run, resume_logging=True, tracking_uri=self._client.tracking_uri
        )
        self._monitor.start()
