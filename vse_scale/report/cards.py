"""Cards of retrieval examples: a query with its first answers."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from vse_scale.report.examples import Answer, Example, Item


def example_cards(examples: Iterable[Example]) -> str:
    """Return one card an example."""
    return f'<div class="examples">{"".join(_card(example) for example in examples)}</div>'


def _card(example: Example) -> str:
    hit = "first" if example.rank == 1 else "later"
    rank = f'<span class="rank {hit}">rank {example.rank:,}</span>'
    # The kind of the query decides the layout: a picture is answered by lines of words.
    body = _pictures_of(example, rank)
    if example.query.picture is not None:
        body = _captions_of(example, rank)
    return (
        f'<article class="example {example.direction}" data-rank="{example.rank}">{body}</article>'
    )


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
