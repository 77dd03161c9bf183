"""Search results as a page with pictures, one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from vse_scale.files import write_text
from vse_scale.html.document import document
from vse_scale.html.thumbnail import thumbnail
from vse_scale.retrieval.index import Hit, Index, SideName


def write_page(
    out: Path, index: Index, side: SideName, queries: Sequence[tuple[str, bytes | None, list[Hit]]]
) -> None:
    """Write ``out``.

    Args:
        out: the file.
        index: the index that was searched; it finds the pictures of hits.
        side: of the hits, images or captions.
        queries: of each the words, or the name of its file and the picture, and the hits.
    """
    sections = "".join(
        f"<section>{_query(words, picture)}<ol>{''.join(_hit(index, side, hit) for hit in hits)}"
        "</ol></section>"
        for words, picture, hits in queries
    )
    html = document(
        "vse_scale.retrieval",
        "page.html",
        f"{queries[0][0]} in {index.folder.name}",
        index=escape(index.folder.name),
        sections=sections,
    )
    write_text(out, html)


def _query(words: str, picture: bytes | None) -> str:
    image = f'<img src="{thumbnail(picture)}" alt="">' if picture is not None else ""
    return f"<header>{image}<h1>{escape(words)}</h1></header>"


def _hit(index: Index, side: SideName, hit: Hit) -> str:
    found = index.picture(side, hit)
    image = ""
    if found is not None:
        image = f'<img src="{thumbnail(found)}" alt="{escape(hit.text or str(hit.id))}">'
    words = f"<p>{escape(hit.text)}</p>" if hit.text else ""
    return (
        f"<li>{image}{words}<footer><span>{escape(str(hit.id))}</span>"
        f"<b>{hit.score:.3f}</b></footer></li>"
    )
