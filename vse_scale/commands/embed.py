"""``vse-scale embed``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vse_scale.commands.common import (
    Batch,
    CacheDir,
    Checkpoint,
    Dim,
    Threads,
    chosen_model,
    open_encoder,
    staged_in,
    weights_sha256,
)
from vse_scale.console import log, progress_of_encoding
from vse_scale.errors import ConfigError
from vse_scale.run.folder import model_folder
from vse_shards.masking import masked
from vse_shards.terminal import tell

if TYPE_CHECKING:
    from vse_scale.retrieval.encoder import Encoder
    from vse_scale.retrieval.sources import Side


def embed(
    model: Annotated[Path, typer.Option(help="a model folder, or a run's folder")],
    out: Annotated[Path, typer.Option(help="the folder to write")],
    data: Annotated[str | None, typer.Option(help="a dataset folder, or its URL")] = None,
    split: Annotated[str, typer.Option(help="of the dataset")] = "test",
    images: Annotated[Path | None, typer.Option(help="a folder of image files")] = None,
    texts: Annotated[Path | None, typer.Option(help="a file with one text a line")] = None,
    dim: Dim = None,
    cache_dir: CacheDir = None,
    checkpoint: Checkpoint = None,
    batch: Batch = 64,
    threads: Threads = 2,
) -> None:
    """Embed a split, a folder of images or a file of texts.

    Writes .npy files with ids, which search reads. The same command goes on where it was killed.
    Started once per process by a launcher, such as torchrun, the processes share the work.
    """
    if sum(value is not None for value in (data, images, texts)) != 1:
        raise ConfigError("give one of --data, --images and --texts: what to embed")
    model = chosen_model(model, checkpoint) or model
    log.info("embedding into %s", out)
    from vse_scale.retrieval.embed import embed as embed_sides
    from vse_scale.world.join import joined

    with joined() as processes:
        encoder = open_encoder(model, batch, threads, dim)
        sides, source = _sides(encoder, data, split, images, texts, cache_dir)
        described = {
            "model": str(model_folder(model).resolve()),
            "weights_sha256": weights_sha256(model),
            "source": source,
            **({} if dim is None else {"dim": dim}),
        }
        with progress_of_encoding(visible=processes.main) as progress:
            counts = embed_sides(
                sides, out, described, batch=batch, processes=processes, progress=progress
            )
    if processes.main:
        for name, count in counts.items():
            aside = f", {count['set_aside']:,} set aside" if count["set_aside"] else ""
            tell(f"{name}: {count['embedded']:,} embedded{aside}")
        tell(f"embeddings: {out}")


def _sides(
    encoder: Encoder,
    data: str | None,
    split: str,
    images: Path | None,
    texts: Path | None,
    cache_dir: Path | None,
) -> tuple[dict[str, Side], dict[str, Any]]:
    from vse_scale.data.shards import ShardDataset
    from vse_scale.retrieval.sources import DatasetCaptions, DatasetImages, FolderImages, TextLines

    if data is not None:
        dataset = ShardDataset(data, split, staged_in(cache_dir))
        sides: dict[str, Side] = {"images": DatasetImages(encoder, dataset)}
        if dataset.pairs:
            sides["captions"] = DatasetCaptions(encoder, dataset)
        place = (
            dataset.folder.resolve() if isinstance(dataset.folder, Path) else masked(dataset.folder)
        )
        return sides, {"data": str(place), "split": split}
    if images is not None:
        return {"images": FolderImages(encoder, images)}, {"images": str(images.resolve())}
    assert texts is not None
    return {"captions": TextLines(encoder, texts)}, {"texts": str(texts.resolve())}
