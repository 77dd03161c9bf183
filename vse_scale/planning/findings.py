"""Findings of ``vse-scale doctor``, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the page.

    Attributes:
        what: the subject, such as "disk".
        state: "ok", "warning" (it will run, but worse than it could) or "fault" (it will not).
        says: the finding in words.
        remedy: a command or setting that mends it; None where there is nothing to mend.
    """

    what: str
    state: Literal["ok", "warning", "fault"]
    says: str
    remedy: str | None = None


def page(findings: list[Finding]) -> str:
    """Return ``findings`` as text, each remedy below its finding."""
    signs = {"ok": "ok     ", "warning": "warning", "fault": "FAULT  "}
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{signs[finding.state]}  {finding.what:<{width}}  {finding.says}")
        if finding.remedy is not None:
            lines.append(f"{'':<{width + 11}}-> {finding.remedy}")
    return "\n".join(lines)


def as_json(findings: list[Finding]) -> dict[str, object]:
    """Return ``findings`` ready for JSON; ``ok`` is whether there is no fault."""
    return {"ok": not faults(findings), "findings": [asdict(finding) for finding in findings]}


def faults(findings: list[Finding]) -> list[Finding]:
    """Return the findings that keep a run from starting."""
    return [finding for finding in findings if finding.state == "fault"]
