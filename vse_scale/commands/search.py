"""``vse-scale search``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vse_scale.commands.common import check_writable, open_encoder, weights_sha256
from vse_scale.errors import ConfigError
from vse_scale.files import write_output
from vse_shards.terminal import tell

if TYPE_CHECKING:
    from torch import Tensor

    from vse_scale.retrieval.encoder import Encoder
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
        Path | None, typer.Option(help="present folder of the model, if it was moved")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="search all, also where `vse-scale index` made an index")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write a page with the pictures")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the answers as JSON")
    ] = None,
) -> None:
    """Find the images or captions nearest to texts or a picture.

    The search is exact, unless `vse-scale index` made an approximate index.
    """
    if not queries and image is None:
        raise ConfigError("nothing to look for; give a text, or --image FILE")
    if side not in (None, "images", "captions"):
        raise ConfigError(f"--in is {side!r}; give images or captions")
    check_writable("--html", html)
    check_writable("--json", output)
    from vse_scale.retrieval.index import Index
    from vse_scale.retrieval.page import write_page

    opened = Index(index, exact=exact)
    made_by = model or opened.model
    encoder = open_encoder(made_by, batch=64, threads=1)
    opened.check_model(made_by, weights_sha256(made_by))
    encoder.model.output_dim = opened.dim  # a narrower model's width is the index's complaint
    vectors, asked = _queries(encoder, queries or [], image)
    wanted: SideName | None = side  # type: ignore[assignment]
    chosen, answers = opened.search(vectors.to(encoder.device), top, wanted)
    found = [(*query, hits) for query, hits in zip(asked, answers, strict=True)]
    for asked_for, _, hits in found:
        tell(asked_for)
        for rank, hit in enumerate(hits, 1):
            words = f"{hit.id}{'  ' if hit.text else ''}{hit.text}"
            tell(f"{rank:>4}  {hit.score:6.3f}  {words}")
    if html is not None:
        write_page(html, opened, chosen, found)
        tell(f"page: {html}")
    if output is not None:
        listed = [
            {"query": words, "hits": [{"id": h.id, "text": h.text, "score": h.score} for h in hits]}
            for words, _, hits in found
        ]
        write_output(output, json.dumps(listed, indent=1, ensure_ascii=False) + "\n")


def _queries(
    encoder: Encoder, texts: list[str], image: Path | None
) -> tuple[Tensor, list[tuple[str, bytes | None]]]:
    """Embed the queries as (Q, D); return with them the words, or name and bytes, of each."""
    import torch

    from vse_scale.retrieval.index import embed_picture, embed_query
    from vse_scale.retrieval.sources import read_checked

    vectors = [embed_query(encoder, text) for text in texts]
    asked: list[tuple[str, bytes | None]] = [(text, None) for text in texts]
    if image is not None:
        vectors.append(embed_picture(encoder, image))
        asked.append((image.name, read_checked(image)))
    return torch.cat(vectors), asked
