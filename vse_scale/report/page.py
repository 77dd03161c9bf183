"""Put the report of a run together: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from vse_scale.html.document import document, write_document
from vse_scale.report import curves, panels, sections, timing
from vse_scale.report.curves import PoolingCurve
from vse_scale.report.examples import Example, Failures
from vse_scale.run.folder import RunFolder


def build_report(
    run_dir: Path,
    out: Path | None = None,
    *,
    examples: Sequence[Example] = (),
    failures: Failures | None = None,
    pooling: Sequence[PoolingCurve] = (),
    similarities: dict[str, Any] | None = None,
) -> Path:
    """Write the report of a run; what the run lacks, the page says in a sentence.

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
    out = out or run_dir / "report.html"
    run = RunFolder.load(run_dir)
    write_document(out, render(run, examples, failures, pooling, similarities))
    return out


def render(
    run: RunFolder,
    examples: Sequence[Example] = (),
    failures: Failures | None = None,
    pooling: Sequence[PoolingCurve] = (),
    similarities: dict[str, Any] | None = None,
) -> str:
    """Return the page as HTML."""
    return document(
        "vse_scale.report",
        "page.html",
        f"{run.name}: training report",
        headline=sections.headline(run),
        recalls=_recalls(run),
        curves=_curves(run),
        separation=_separation(run, similarities),
        examples=_examples(examples),
        failures=_failures(failures),
        pooling=_pooling(run, pooling),
        time=timing.time_section(run.steps) if run.steps else _absent("No step was recorded yet."),
        settings=(
            sections.settings_list(run.config)
            if run.config
            else _absent("The run folder holds no config.yaml.")
        ),
        system=(
            f'<div class="settings">{panels.system_list(run.system)}</div>'
            if run.system
            else _absent("The run folder holds no system.json.")
        ),
        script=(files("vse_scale.report") / "script.js").read_text("utf-8"),
    )


def _absent(sentence: str) -> str:
    return f'<p class="absent">{escape(sentence)}</p>'


def _note(sentence: str) -> str:
    return f'<p class="note">{escape(sentence)}</p>'


def _recalls(run: RunFolder) -> str:
    if "rsum" not in run.results:
        return _absent("Not evaluated: no epoch is over yet, or there is no validation split.")
    note = _note("In percent: queries with a right answer among the first 1, 5 or 10.")
    return note + sections.recall_table(run.results)


def _curves(run: RunFolder) -> str:
    charts = [
        curves.loss_chart(run) or _absent("No step was recorded yet, so there is no loss curve."),
        curves.rsum_chart(run) or _absent("No validation was recorded, so there is no RSUM curve."),
    ]
    charts += [panels.recall_charts(run), panels.similarity_chart(run)]
    table = sections.validation_table(run.evaluations) if run.evaluations else ""
    return f'<div class="charts">{"".join(charts)}</div>{table}'


def _separation(run: RunFolder, similarities: dict[str, Any] | None) -> str:
    if similarities is None:
        recorded = [record for record in run.evaluations if record.get("similarities")]
        best = max(recorded, key=lambda record: float(record["rsum"]), default={})
        similarities = best.get("similarities")
    chart = panels.separation_chart(similarities)
    if not chart:
        return _absent("No similarities were recorded, and no model was at hand to compute them.")
    note = _note(
        "Each caption twice: by its similarity with its own image, and with the most similar other "
        "image. Where the two overlap, captions find the wrong picture."
    )
    return f'{note}<div class="charts">{chart}</div>'


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return _absent("No retrieval examples were made for this report.")
    groups = (("Picture to captions", "i2t"), ("Caption to pictures", "t2i"))
    note = _note(
        "Queries drawn at random. Each shows its nearest answers with their cosine similarity; "
        "✓ right, ✗ wrong."
    )
    return note + "".join(
        f'<h3>{name}</h3><div class="examples">'
        f"{sections.example_cards(e for e in examples if e.way == way)}</div>"
        for name, way in groups
    )


def _failures(failures: Failures | None) -> str:
    if failures is None:
        return _absent("No failures were looked for in this report.")
    if not failures.shown:
        return _absent("None: every query found a right answer first.")
    return sections.failure_browser(failures)


def _pooling(run: RunFolder, pooling: Sequence[PoolingCurve]) -> str:
    charts = "".join(curves.pooling_chart(pooling, side) for side in ("image", "text"))
    over_time = panels.pooling_over_time(run.evaluations)
    if not charts and not over_time:
        return _absent("No model was at hand to read the pooling weights from.")
    note = _note(
        "GPO sorts the values of every channel and weighs them by position. Weight at the left "
        "alone would be max pooling; the dashed line is the plain average."
    )
    return f'{note}<div class="charts">{charts}{over_time}</div>'
