"""The parts of the page that are words, tables and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

import numpy as np

from vse_scale.console import duration
from vse_scale.report.examples import Answer, Example, Failures, Item, Way
from vse_scale.run.folder import RunFolder

_DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}
_QUERIES: dict[Way, str] = {"i2t": "pictures", "t2i": "captions"}
_RECALLS = {"r1": "R@1", "r5": "R@5", "r10": "R@10"}


def headline(run: RunFolder) -> str:
    """Return the head of the page: what was trained, on what, and how good it became."""
    dataset = run.setting("data.path")
    if isinstance(dataset, list):
        dataset = " + ".join(dataset)
    facts = [
        ("trained on", dataset),
        ("images by", _image_tower(run)),
        ("text by", _text_tower(run)),
    ]
    words = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts
        if value
    )
    score = '<p class="score none">not evaluated yet</p>'
    if "rsum" in run.results:
        score = (
            f'<p class="score"><b>{run.results["rsum"]:.1f}</b><span>RSUM of 600'
            f"<br>on {escape(str(run.results.get('split', 'the evaluated split')))}</span></p>"
        )
    return (
        f'<div class="title"><p class="eyebrow">Image–text retrieval</p><h1>{escape(run.name)}</h1>'
        f'<dl class="facts">{words}</dl></div>{score}{_strip(run)}'
    )


def recall_table(results: dict[str, Any]) -> str:
    """Return the recalls of both directions as a table with a bar behind each percentage."""
    head = "".join(f'<th scope="col">{name}</th>' for name in _RECALLS.values())
    rows = []
    for way, name in _DIRECTIONS.items():
        figures = results[way]
        cells = "".join(
            f'<td class="bar" style="--share:{figures[key]:.2f}%">{figures[key]:.1f}</td>'
            for key in _RECALLS
        )
        rows.append(
            f'<tr class="{way}"><th scope="row">{name}</th>{cells}'
            f"<td>{figures['median_rank']:g}</td><td>{figures['mean_rank']:.1f}</td></tr>"
        )
    return (
        '<table class="figures recalls"><thead><tr><th scope="col">Direction</th>'
        f'{head}<th scope="col">Median rank</th><th scope="col">Mean rank</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def validation_table(evaluations: Sequence[dict[str, Any]]) -> str:
    """Return every validation's recalls, folded away."""
    head = "".join(
        f'<th scope="col">{short} {name}</th>'
        for short in ("i→t", "t→i")
        for name in _RECALLS.values()
    )
    rows = "".join(
        f'<tr><th scope="row">{record["step"]:,}</th>'
        + "".join(f"<td>{record[way][key]:.1f}</td>" for way in _DIRECTIONS for key in _RECALLS)
        + f"<td>{record['rsum']:.1f}</td></tr>"
        for record in evaluations
    )
    return (
        f"<details><summary>Every validation ({len(evaluations)})</summary>"
        '<div class="wide"><table class="figures"><thead><tr><th scope="col">Step</th>'
        f'{head}<th scope="col">RSUM</th></tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def example_cards(examples: Iterable[Example]) -> str:
    """Return one card an example."""
    return "".join(_card(example) for example in examples)


def failure_browser(failures: Failures) -> str:
    """Return all failures that are shown, the worst first, with a form to filter them."""
    count = ", ".join(
        f"{failures.total[way]:,} of {failures.queries[way]:,} {name}"
        for way, name in _QUERIES.items()
    )
    listed = len(failures.shown)
    note = f"Another answer came first for {count}; " + (
        "all of them are here."
        if listed == sum(failures.total.values())
        else f"the worst {listed} are here."
    )
    ranks = "".join(f'<option value="{rank}">{rank} or later</option>' for rank in (2, 6, 11, 51))
    return (
        f'<p class="note">{escape(note)}</p><div id="failures-box"><form hidden>'
        '<label>Query <select name="way"><option value="">pictures and captions</option>'
        '<option value="i2t">pictures</option><option value="t2i">captions</option></select>'
        "</label>"
        f'<label>Rank <select name="rank">{ranks}</select></label>'
        '<label>Words <input name="words" type="search" placeholder="red ring"></label>'
        "<output></output></form>"
        f'<div class="examples">{example_cards(failures.shown)}</div>'
        '<button type="button" hidden>Show more</button></div>'
    )


def settings_list(config: dict[str, Any]) -> str:
    """Return the configuration, section by section."""
    sections = []
    for section, values in config.items():
        pairs = "".join(
            f"<div><dt>{escape(key)}</dt><dd>{escape(plain(value))}</dd></div>"
            for key, value in flat_settings(values)
        )
        sections.append(f"<section><h3>{escape(section)}</h3><dl>{pairs}</dl></section>")
    return f'<div class="settings">{"".join(sections)}</div>'


def _strip(run: RunFolder) -> str:
    """Return the row of key figures under the headline."""
    figures = []
    for way, name in _DIRECTIONS.items():
        if way in run.results:
            figures.append((f"{run.results[way]['r1']:.1f} %", f"R@1, {name}"))
    if run.steps:
        seconds = sum(float(record["seconds"]["step"]) for record in run.steps)
        epochs = run.steps[-1]["epoch_fraction"]
        speed = float(np.median([record["pairs_per_second"] for record in run.steps]))
        figures += [
            (f"{len(run.steps):,}", f"steps, {epochs:.3g} epochs"),
            (duration(seconds), "training time"),
            (f"{speed:,.0f}", "pairs a second"),
        ]
    items = "".join(f"<li><b>{escape(a)}</b><span>{escape(b)}</span></li>" for a, b in figures)
    return f'<ul class="strip">{items}</ul>' if figures else ""


def _image_tower(run: RunFolder) -> str:
    backbone = run.setting("model.image.backbone")
    if backbone == "regions":
        return "region features"
    if backbone == "huggingface":
        path, kind = (run.setting(f"model.image.{k}") for k in ("path", "architecture.model_type"))
        backbone = PurePath(path).name if path else kind
    size = run.setting("model.image.size")
    return f"{backbone}, {size} px" if backbone else ""


def _text_tower(run: RunFolder) -> str:
    if run.setting("model.text.encoder") == "bigru":
        return "BiGRU"
    path = run.setting("model.text.path")
    if path:
        return PurePath(path).name
    kind = run.setting("model.text.architecture.model_type", "BERT")
    layers = run.setting("model.text.architecture.num_hidden_layers")
    return f"{kind} of {layers} layers" if layers else (kind if run.config else "")


def _card(example: Example) -> str:
    hit = "first" if example.rank == 1 else "later"
    rank = f'<span class="rank {hit}">rank {example.rank:,}</span>'
    body = _captions_of(example, rank) if example.way == "i2t" else _pictures_of(example, rank)
    return f'<article class="example {example.way}" data-rank="{example.rank}">{body}</article>'


def _captions_of(example: Example, rank: str) -> str:
    answers = "".join(
        f'<li class="{_verdict(answer)}">{_badge(answer)}<span>{escape(answer.item.text)}</span>'
        f"{_score(answer)}</li>"
        for answer in example.answers
    )
    missed = ""
    if example.missed:
        missed = (
            f'<p class="missed">{_badge(example.missed)} Its best own caption: rank '
            f"{example.rank:,}, {_score(example.missed)} "
            f"<q>{escape(example.missed.item.text)}</q></p>"
        )
    return (
        f'<div class="query">{_image(example.query)}{rank}</div>'
        f'<div class="answers"><ol>{answers}</ol>{missed}</div>'
    )


def _pictures_of(example: Example, rank: str) -> str:
    answers = "".join(f"<li>{_tile(answer)}</li>" for answer in example.answers)
    missed = ""
    if example.missed:
        own = example.missed
        missed = (
            f'<div class="missed right">{_image(own.item)}<p>{_badge(own)} Its own picture: rank '
            f"{example.rank:,}, {_score(own)}</p></div>"
        )
    return (
        f'{rank}<blockquote class="query">{escape(example.query.text)}</blockquote>'
        f'<div class="answers"><ol>{answers}</ol>{missed}</div>'
    )


def _tile(answer: Answer) -> str:
    return (
        f'<figure class="{_verdict(answer)}">{_image(answer.item)}'
        f"<figcaption>{_badge(answer)}{_score(answer)}</figcaption></figure>"
    )


def _image(item: Item) -> str:
    return f'<img src="{item.picture}" alt="{escape(item.text)}">'


def _verdict(answer: Answer) -> str:
    return "right" if answer.right else "wrong"


def _badge(answer: Answer) -> str:
    """Return a sign that does not rest on colour."""
    sign = "✓" if answer.right else "✗"
    return f'<span class="badge" role="img" aria-label="{_verdict(answer)}">{sign}</span>'


def _score(answer: Answer) -> str:
    figure = f"{answer.score:.2f}".replace("-", "−")
    return f'<span class="similarity" title="cosine similarity">{figure}</span>'


def flat_settings(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return settings of all depths by their dotted names."""
    if not isinstance(values, dict):
        return [(prefix or "value", values)]
    pairs = []
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        nested = isinstance(value, dict) and value
        pairs += flat_settings(value, name) if nested else [(name, value)]
    return pairs


def plain(value: Any) -> str:
    """Return a setting's value in words."""
    if value is None or value == {}:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value) or "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
