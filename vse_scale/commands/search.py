"""``vse-scale search``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vse_scale.commands.common import check_writable, open_encoder
from vse_scale.errors import ConfigError

if TYPE_CHECKING:
    from vse_scale.retrieval.index import SideName


def search(
    index: Annotated[Path, typer.Option(help="a folder that embed wrote")],
    queries: Annotated[list[str] | None, typer.Argument(metavar="[TEXT ...]")] = None,
    image: Annotated[Path | None, typer.Option(help="a query by picture")] = None,
    side: Annotated[
        str | None, typer.Option("--in", help="images or captions; default: images, if embedded")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="answers to a query")] = 10,
    model: Annotated[
        Path | None, typer.Option(help="where the model is now, if it was moved")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write a page with the pictures")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the answers as JSON")
    ] = None,
) -> None:
    """Find what is nearest to texts, or to a picture, exactly."""
    if not queries and image is None:
        raise ConfigError("nothing to look for; give a text, or --image FILE")
    if side not in (None, "images", "captions"):
        raise ConfigError(f"--in is {side!r}; give images or captions")
    check_writable("--html", html)
    check_writable("--json", output)
    import torch

    from vse_scale.retrieval.index import Index, embed_picture, embed_query
    from vse_scale.retrieval.page import write_page

    opened = Index(index)
    encoder = open_encoder(model or opened.model, batch=64, threads=1)
    vectors = [embed_query(encoder, text) for text in queries or []]
    asked: list[tuple[str, bytes | None]] = [(text, None) for text in queries or []]
    if image is not None:
        vectors.append(embed_picture(encoder, image))
        asked.append((image.name, image.read_bytes()))
    wanted: SideName | None = side  # type: ignore[assignment]
    chosen, answers = opened.search(torch.cat(vectors).to(encoder.device), top, wanted)
    found = [(*query, hits) for query, hits in zip(asked, answers, strict=True)]
    for words, _, hits in found:
        print(words)
        for place, hit in enumerate(hits, 1):
            print(f"{place:>4}  {hit.score:6.3f}  {hit.id}{'  ' if hit.text else ''}{hit.text}")
    if html is not None:
        write_page(html, opened, chosen, found)
        print(f"page: {html}")
    if output is not None:
        listed = [
            {"query": words, "hits": [{"id": h.id, "text": h.text, "score": h.score} for h in hits]}
            for words, _, hits in found
        ]
        output.write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", "utf-8")
