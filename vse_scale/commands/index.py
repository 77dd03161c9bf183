"""``vse-scale index``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vse_scale.console import heartbeat, log
from vse_scale.errors import OutputError
from vse_scale.run.extras import require
from vse_shards.terminal import tell


def index(
    index: Annotated[Path, typer.Option(help="a folder that embed wrote")],
    faiss: Annotated[
        str, typer.Option(metavar="IVF1024,PQ32", help="the kind, for faiss' index factory")
    ],
    recall: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="of the ten best; a search looks as far as it takes"),
    ] = 0.95,
) -> None:
    """Make an approximate index of embeddings by faiss.

    `search` and `serve` use it from then on, and say how good it is. Its recall against the exact
    answer is measured on up to 1,000 rows of the other side, or of the same where there is one,
    and stands beside it.
    """
    require("faiss", "vse-scale index")
    from vse_scale.retrieval.approximate import build_approximate
    from vse_scale.retrieval.index import Index

    opened = Index(index, exact=True)
    try:
        for side in opened.sides:
            other = next((name for name in opened.sides if name != side), side)
            queries = (other, opened.rows(other))
            with heartbeat(f"{side}: making the index"):
                quality = build_approximate(
                    index, side, opened.rows(side), queries, faiss, recall, log.info
                )
            short = "" if quality.recall_at_10 >= recall else f"; less than --recall {recall:g}"
            tell(f"{side}: {quality.in_words()}{short}")
    except OSError as error:
        raise OutputError(f"--index {index}: cannot be written ({error.strerror})") from error
