"""The machine of a run, and the versions of its packages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vse_scale.report.data import Column, ReportData
from vse_scale.report.panel import Panel, Section
from vse_scale.report.pieces import absent, definitions, note, side_by_side

_GIGA = 1e9


class Machine(Panel):
    """Processors, memory, GPUs and versions."""

    section = Section("system", "Machine and versions", 80)

    def render(self, data: ReportData) -> str:
        """Return the facts and versions of a run."""
        if not data.run.system:
            return absent("The run folder holds no system.json.")
        return _listed(data.run.system)

    def compare(self, columns: Sequence[Column]) -> str:
        """Return the machines of the runs, or the one of all of them."""
        systems = [column.run.system for column in columns]
        if not any(systems):
            return absent("No run recorded its machine.")
        machines = [{k: v for k, v in own.items() if k != "origin"} for own in systems]
        if all(machine == machines[0] for machine in machines):
            origins = [_listed({k: v for k, v in own.items() if k == "origin"}) for own in systems]
            own = side_by_side(columns, origins) if any("origin" in s for s in systems) else ""
            return own + note("The same for both.") + _listed(machines[0])
        return side_by_side(columns, [_listed(system) for system in systems])


def _listed(system: dict[str, Any]) -> str:
    if not system:
        return '<div class="settings">Not recorded.</div>'
    gpus = [f"{gpu['name']}, {_gigabytes(gpu['memory_bytes'])}" for gpu in system.get("gpus", [])]
    facts = [
        ("processes", system.get("ranks")),
        ("GPUs", "; ".join(gpus) or "none"),
        ("processor", system.get("processor")),
        ("cores", system.get("cores")),
        ("threads per process", system.get("threads_per_rank")),
        ("memory", _gigabytes(system["memory_bytes"]) if "memory_bytes" in system else None),
        ("Linux", system.get("kernel")),
        ("Python", system.get("python")),
    ]
    known = [(name, str(value)) for name, value in facts if value is not None]
    versions = [(name, str(version)) for name, version in system.get("packages", {}).items()]
    listed = ""
    if isinstance(origin := system.get("origin"), dict):
        listed += definitions("Origin", [(str(name), str(value)) for name, value in origin.items()])
    if set(system) - {"origin"}:
        listed += definitions("Machine", known)
    if versions:
        listed += definitions("Versions", versions)
    return f'<div class="settings">{listed}</div>'


def _gigabytes(size: float) -> str:
    return f"{size / _GIGA:.1f} GB"


PANEL = Machine()
