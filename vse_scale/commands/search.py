"""``vse-scale embed`` and ``vse-scale search``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vse_scale.commands.common import best_device, check_writable, model_folder
from vse_scale.console import log, progress_of_encoding
from vse_scale.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from vse_scale.retrieval.index import SideName
    from vse_scale.retrieval.sources import Encoder, Side


def embed(
    model: Annotated[Path, typer.Option(help="a model folder, or a run's folder")],
    out: Annotated[Path, typer.Option(help="the folder to write")],
    data: Annotated[str | None, typer.Option(help="a dataset folder, or its URL")] = None,
    split: Annotated[str, typer.Option(help="of the dataset")] = "test",
    images: Annotated[Path | None, typer.Option(help="a folder of image files")] = None,
    texts: Annotated[Path | None, typer.Option(help="a file with one text a line")] = None,
    batch: Annotated[int, typer.Option(min=1, help="items encoded at once")] = 64,
    threads: Annotated[int, typer.Option(min=1, help="decoding threads")] = 2,
) -> None:
    """Embed a dataset's split, a folder of images or a file of texts, as .npy with ids.

    The same command goes on where it was killed. Started once per process by a launcher, such as
    torchrun, the processes share the work.
    """
    if sum(value is not None for value in (data, images, texts)) != 1:
        raise ConfigError("give one of --data, --images and --texts: what to embed")
    log.info("embedding into %s", out)
    from vse_scale.retrieval.embed import embed as embed_sides
    from vse_scale.world.processes import joined

    with joined() as processes:
        encoder = _encoder(model, batch, threads)
        sides, source = _sides(encoder, data, split, images, texts)
        described = {
            "model": str(model_folder(model).resolve()),
            "weights_sha256": _sha256(model_folder(model) / "model.safetensors"),
            "source": source,
        }
        with progress_of_encoding(visible=processes.main) as progress:
            counts = embed_sides(
                sides, out, described, batch=batch, processes=processes, progress=progress
            )
    if processes.main:
        for name, count in counts.items():
            aside = f", {count['set_aside']:,} set aside" if count["set_aside"] else ""
            print(f"{name}: {count['embedded']:,} embedded{aside}")
        print(f"embeddings: {out}")


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
    encoder = _encoder(model or opened.model, batch=64, threads=1)
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


def _encoder(model: Path, batch: int, threads: int) -> Encoder:
    from vse_scale.inputs.tokens import CaptionTokenizer
    from vse_scale.model.vse import VSEModel
    from vse_scale.retrieval.sources import Encoder

    folder = model_folder(model)
    device = best_device()
    opened = VSEModel.from_pretrained(folder).to(device)
    try:
        tokenizer = CaptionTokenizer.load(folder)
    except ModelError:
        tokenizer = None
    return Encoder(opened, tokenizer, device, batch, threads)


def _sides(
    encoder: Encoder, data: str | None, split: str, images: Path | None, texts: Path | None
) -> tuple[dict[str, Side], dict[str, Any]]:
    from vse_scale.data.shards import ShardDataset
    from vse_scale.retrieval.sources import DatasetCaptions, DatasetImages, FolderImages, TextLines

    if data is not None:
        dataset = ShardDataset(data, split)
        sides: dict[str, Side] = {"images": DatasetImages(encoder, dataset)}
        if dataset.pairs:
            sides["captions"] = DatasetCaptions(encoder, dataset)
        place = dataset.folder.resolve() if isinstance(dataset.folder, Path) else dataset.folder
        return sides, {"data": str(place), "split": split}
    if images is not None:
        return {"images": FolderImages(encoder, images)}, {"images": str(images.resolve())}
    assert texts is not None
    return {"captions": TextLines(encoder, texts)}, {"texts": str(texts.resolve())}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
