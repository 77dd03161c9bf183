"""Put the report of a run together: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from vse_scale.report import curves, sections, timing
from vse_scale.report.curves import PoolingCurve
from vse_scale.report.examples import Example
from vse_scale.report.run_folder import RunFolder


def build_report(
    run_dir: Path,
    out: Path | None = None,
    *,
    examples: Sequence[Example] = (),
    pooling: Sequence[PoolingCurve] = (),
) -> Path:
    """Write the report of a run; what the run lacks, the page says in a sentence.

    Args:
        run_dir: a run folder.
        out: the file to write; ``run_dir``/report.html by default.
        examples: retrieval examples with their pictures.
        pooling: the learned pooling weights.

    Returns:
        The path of the file.

    Raises:
        OutputError: ``run_dir`` is missing or damaged.
    """
    out = out or run_dir / "report.html"
    partial = out.with_name(out.name + ".partial")
    partial.write_text(render(RunFolder.load(run_dir), examples, pooling), encoding="utf-8")
    partial.replace(out)
    return out


def render(
    run: RunFolder, examples: Sequence[Example] = (), pooling: Sequence[PoolingCurve] = ()
) -> str:
    """Return the page as HTML."""
    folder = files("vse_scale.report")
    return Template((folder / "page.html").read_text("utf-8")).substitute(
        title=escape(f"{run.name}: training report"),
        style=(folder / "style.css").read_text("utf-8"),
        headline=sections.headline(run),
        recalls=_recalls(run),
        curves=_curves(run),
        examples=_examples(examples),
        pooling=_pooling(pooling),
        time=timing.time_section(run.steps) if run.steps else _absent("No step was recorded yet."),
        settings=(
            sections.settings_list(run.config)
            if run.config
            else _absent("The run folder holds no config.yaml.")
        ),
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
    table = sections.validation_table(run.evaluations) if run.evaluations else ""
    return f'<div class="charts">{"".join(charts)}</div>{table}'


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return _absent("No retrieval examples were made for this report.")
    groups = (
        ("Picture to captions", [e for e in examples if e.way == "i2t" and not e.worst]),
        ("Caption to pictures", [e for e in examples if e.way == "t2i" and not e.worst]),
        ("The worst failures", [e for e in examples if e.worst]),
    )
    note = _note(
        "Queries drawn at random, then those whose right answer came last. Each shows its nearest "
        "answers with their cosine similarity; ✓ right, ✗ wrong."
    )
    return note + "".join(
        f'<h3>{name}</h3><div class="examples">{sections.example_cards(group)}</div>'
        for name, group in groups
        if group
    )


def _pooling(pooling: Sequence[PoolingCurve]) -> str:
    charts = "".join(curves.pooling_chart(pooling, side) for side in ("image", "text"))
    if not charts:
        return _absent("No model was at hand to read the pooling weights from.")
    note = _note(
        "GPO sorts the values of every channel and weighs them by position. Weight at the left "
        "alone would be max pooling; the dashed line is the plain average."
    )
    return f'{note}<div class="charts">{charts}</div>'
