"""``vse-scale embed``."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
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
from vse_scale.errors import ConfigError, UserError
from vse_scale.run.folder import model_folder
from vse_shards.masking import masked
from vse_shards.ray_cluster import PARTS_PER_WORKER, connected, import_ray, run_tasks
from vse_shards.remote import is_url
from vse_shards.terminal import tell

if TYPE_CHECKING:
    from vse_scale.retrieval.embed import Elsewhere
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
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="ray[://HOST:PORT]",
            help="let the workers of a Ray cluster embed, each with a GPU or else a core; ray "
            "alone: of RAY_ADDRESS, or of this machine",
        ),
    ] = None,
) -> None:
    """Embed a split, a folder of images or a file of texts.

    Writes .npy files with ids, which search reads. The same command goes on where it was killed.
    Started once per process by a launcher, such as torchrun, the processes share the work.
    """
    if sum(value is not None for value in (data, images, texts)) != 1:
        raise ConfigError("give one of --data, --images and --texts: what to embed")
    if engine is not None:
        import_ray(engine)
    model = chosen_model(model, checkpoint) or model
    log.info("embedding into %s", out)
    from vse_scale.retrieval.embed import embed as embed_sides
    from vse_scale.world.join import joined

    request = _Request(model, batch, threads, dim, data, split, images, texts, cache_dir)
    with joined() as processes:
        if engine is not None and processes.ranks > 1:
            raise ConfigError(
                f"--engine {engine}: a launcher started {processes.ranks} processes, and the "
                "cluster has its own; start this command once, without the launcher"
            )
        sides, described = request.open()
        with (
            progress_of_encoding(visible=processes.main) as progress,
            _elsewhere(engine, request, out) as elsewhere,
        ):
            counts = embed_sides(
                sides, out, described,
                batch=batch, processes=processes, progress=progress, elsewhere=elsewhere,
            )  # fmt: skip
    if processes.main:
        for name, count in counts.items():
            aside = f", {count['set_aside']:,} set aside" if count["set_aside"] else ""
            tell(f"{name}: {count['embedded']:,} embedded{aside}")
        tell(f"embeddings: {out}")


@dataclass(frozen=True)
class _Request:
    """The model and the items to embed, as the command's options have them."""

    model: Path
    batch: int
    threads: int
    dim: int | None
    data: str | None
    split: str
    images: Path | None
    texts: Path | None
    cache_dir: Path | None

    def open(self) -> tuple[dict[str, Side], dict[str, Any]]:
        """Return the sides, and a description of them and of the model."""
        encoder = open_encoder(self.model, self.batch, self.threads, self.dim)
        sides, source = self._sides(encoder)
        described = {
            "model": str(model_folder(self.model).resolve()),
            "weights_sha256": weights_sha256(self.model),
            "source": source,
            **({} if self.dim is None else {"dim": self.dim}),
        }
        return sides, described

    def absolute(self) -> _Request:
        """Return the same for a process that runs in another folder."""
        here = self.data is not None and not is_url(self.data)
        return replace(
            self, model=self.model.absolute(),
            data=os.path.abspath(str(self.data)) if here else self.data,
            images=self.images and self.images.absolute(),
            texts=self.texts and self.texts.absolute(),
            cache_dir=self.cache_dir and self.cache_dir.absolute(),
        )  # fmt: skip

    def _sides(self, encoder: Encoder) -> tuple[dict[str, Side], dict[str, Any]]:
        from vse_scale.data.shards import ShardDataset
        from vse_scale.retrieval.sources import (
            DatasetCaptions,
            DatasetImages,
            FolderImages,
            TextLines,
        )

        if self.data is not None:
            dataset = ShardDataset(self.data, self.split, staged_in(self.cache_dir))
            sides: dict[str, Side] = {"images": DatasetImages(encoder, dataset)}
            if dataset.pairs:
                sides["captions"] = DatasetCaptions(encoder, dataset)
            place = (
                dataset.folder.resolve()
                if isinstance(dataset.folder, Path)
                else masked(dataset.folder)
            )
            return sides, {"data": str(place), "split": self.split}
        if self.images is not None:
            source = {"images": str(self.images.resolve())}
            return {"images": FolderImages(encoder, self.images)}, source
        assert self.texts is not None
        return {"captions": TextLines(encoder, self.texts)}, {"texts": str(self.texts.resolve())}


@contextmanager
def _elsewhere(engine: str | None, request: _Request, out: Path) -> Iterator[Elsewhere | None]:
    """Yield how a cluster computes parts, connected to it; None where this process does."""
    if engine is None:
        yield None
        return
    ray, asked = import_ray(engine), (request.absolute(), out.absolute())
    with connected(ray, engine):
        resources = ray.cluster_resources()
        kind = "GPU" if resources.get("GPU", 0) >= 1 else "CPU"
        most = PARTS_PER_WORKER * int(resources.get(kind, 1))

        def compute(name: str, numbers: list[int], report: Callable[[int], None]) -> None:
            tasks = min(len(numbers), most)
            # Neighbours together: they share shards, which a worker may have to fetch.
            bounds = [len(numbers) * task // tasks for task in range(tasks + 1)] if tasks else []
            parts = [(*asked, name, numbers[a:b]) for a, b in pairwise(bounds)]
            takes = {f"num_{kind.lower()}s": 1}
            done = 0
            for items in run_tasks(ray, _embed_parts, parts, str(out), **takes):
                report(done := done + items)

        yield compute


_opened = cache(_Request.open)  # once in a worker, which has one task after the other


def _embed_parts(request: _Request, out: Path, name: str, numbers: list[int]) -> int:
    """Embed parts, as a task of Ray; return their items."""
    from vse_scale.retrieval.embed import embed_parts

    try:
        sides, described = _opened(request)
        return embed_parts(sides, out, described, batch=request.batch, name=name, numbers=numbers)
    except UserError as error:
        raise type(error)(f"on {socket.gethostname()}: {error}") from None
