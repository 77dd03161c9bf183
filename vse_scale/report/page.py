"""The report of one run: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vse_scale.files import write_text
from vse_scale.report import frame, headline
from vse_scale.report.data import Findings, KnownFindings, PoolingCurve, ReportData
from vse_scale.report.examples import Example, Failures
from vse_scale.report.panel import discover
from vse_scale.run.folder import RunRecords


def build_report(
    run_dir: Path,
    out: Path | None = None,
    *,
    examples: Sequence[Example] = (),
    failures: Failures | None = None,
    pooling: Sequence[PoolingCurve] = (),
    similarities: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Write the report of a run; for anything that the run lacks, the page has a sentence.

    Args:
        run_dir: a run folder.
        out: the file to write; ``run_dir``/report.html by default.
        examples: retrieval examples with their pictures.
        failures: the queries that failed, to browse.
        pooling: the learned pooling weights.
        similarities: histograms, as `similarity_histograms` makes them; None takes those of the
            best validation that recorded some.

    Returns:
        The path of the file.

    Raises:
        OutputError: ``run_dir`` is missing or damaged.
    """
    found = KnownFindings(examples, failures, pooling, similarities)
    return write_report(out, RunRecords.load(run_dir), found)


def write_report(
    out: Path | None, run: RunRecords, found: Findings, reload_seconds: int | None = None
) -> Path:
    """Write the report of ``run`` to ``out``, by default report.html in its folder."""
    out = out or run.folder.report_file
    write_text(out, render(ReportData(run, found), reload_seconds))
    return out


def render(data: ReportData, reload_seconds: int | None = None) -> str:
    """Return the page as HTML; a browser opens it again after ``reload_seconds``."""
    return frame.page(
        f"{data.run.name}: training report",
        headline.of_run(data.run),
        [(panel.section, panel, panel.render(data)) for panel in discover()],
        reload_seconds,
    )
