"""The records of a run as plain mappings; `vse_scale.run.folder.RunRecords` replaces it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vse_scale.errors import OutputError
from vse_scale.run.journal import read_journal


@dataclass(frozen=True)
class RunFolder:
    """The records of a run; each is empty where the run has not written it yet.

    Attributes:
        name: the folder's own name.
        config: config.yaml, sections of keys.
        steps: metrics.jsonl, one mapping a step.
        evaluations: evaluations.jsonl, one mapping a validation.
        results: results.json or, of a run that is not over, its best validation.
        system: system.json, what the run ran on.
    """

    name: str
    config: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    results: dict[str, Any]
    system: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> RunFolder:
        """Read ``folder``, whatever of it is there.

        Raises:
            OutputError: there is no such folder, or one of its files is damaged.
        """
        if not folder.is_dir():
            raise OutputError(f"{folder}: no such run folder; give the run.dir of a training run")
        config, results = folder / "config.yaml", folder / "results.json"
        reading = config
        try:
            settings = yaml.safe_load(config.read_text("utf-8")) if config.exists() else {}
            reading = folder / "metrics.jsonl"
            steps = read_journal(reading)
            reading = folder / "evaluations.jsonl"
            evaluations = read_journal(reading)
            reading = results
            final = json.loads(results.read_text("utf-8")) if results.exists() else {}
            reading = folder / "system.json"
            system = json.loads(reading.read_text("utf-8")) if reading.exists() else {}
        except (ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise OutputError(f"{reading}: is damaged ({reason}); restore or remove it") from error
        if "rsum" not in final and evaluations:
            final = {**max(evaluations, key=lambda record: float(record["rsum"])), **final}
        return cls(folder.resolve().name, settings, steps, evaluations, final, system)

    def setting(self, dotted: str, default: Any = None) -> Any:
        """Return the value of a configuration key such as ``data.path``."""
        value: Any = self.config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value
