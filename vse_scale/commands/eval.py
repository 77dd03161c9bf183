"""``vse-scale eval``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vse_scale.commands.common import (
    Batch,
    CacheDir,
    Checkpoint,
    Dim,
    Threads,
    best_device,
    check_writable,
    chosen_model,
    open_encoder,
    staged_in,
)
from vse_scale.commands.protocols import open_protocols
from vse_scale.console import log, progress_of_encoding
from vse_scale.errors import ConfigError
from vse_scale.files import write_output
from vse_scale.retrieval.protocols.registry import PROTOCOLS
from vse_shards.terminal import tell_page

if TYPE_CHECKING:
    from vse_scale.data.shards import ShardDataset
    from vse_scale.retrieval.encode import Embeddings
    from vse_scale.retrieval.encoder import Encoder
    from vse_scale.retrieval.gallery import Gallery
    from vse_scale.retrieval.protocols.base import RankingProtocol, Result
    from vse_scale.world.processes import Processes


# Long and branched: Typer reads the options from the signature, and each way to say what is ranked
# is one of them.
def evaluate(
    model: Annotated[Path | None, typer.Option(help="a model folder, or a run's folder")] = None,
    data: Annotated[str | None, typer.Option(help="a dataset folder, or its URL")] = None,
    split: Annotated[str, typer.Option(help="the split to rank")] = "test",
    protocol: Annotated[
        str,
        typer.Option(help=f"{', '.join(PROTOCOLS.names())}, or your own as module:Class"),
    ] = "plain",
    embeddings: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR[=WEIGHT]", help="saved by embed; several are an ensemble"),
    ] = None,
    similarities: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.npy[=WEIGHT]",
            help="images x captions of --data in the source's order; several are an ensemble",
        ),
    ] = None,
    cxc: Annotated[Path | None, typer.Option(help="the folder of CxC's CSV files")] = None,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="cxc as the code of VSE-infinity reads it")
    ] = False,
    eccv: Annotated[
        Path | None, typer.Option(help="the folder of ECCV Caption's files, ranked beside")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the figures as JSON")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="print the table as Markdown, for a paper")
    ] = False,
    dim: Dim = None,
    cache_dir: CacheDir = None,
    checkpoint: Checkpoint = None,
    batch: Batch = 64,
    threads: Threads = 2,
) -> None:
    """Rank a split in both directions, and print the recalls.

    By a model, or by what models saved.

    Started once per process by a launcher, such as torchrun, the processes share the work.
    """
    model = chosen_model(model, checkpoint)
    sources = {"--model": model, "--embeddings": embeddings, "--similarities": similarities}
    _check_source(sources, data, dim)
    check_writable("--json", output)
    members = [_weighted(text) for text in [*(embeddings or []), *(similarities or [])]]
    log.info("evaluating %s", model or ", ".join(str(path) for path, _ in members))
    options = {"cxc": cxc, "as_published": as_published, "eccv": eccv}
    protocols = open_protocols(protocol, options, of_similarities=bool(similarities))
    from vse_scale.world.join import joined

    with joined() as processes:
        encoder = None if model is None else open_encoder(model, batch, threads, dim)
        dataset = _open_dataset(protocol, protocols, data, split, cache_dir, needed=not embeddings)
        gallery: Gallery
        if encoder is not None:
            gallery = _encode(encoder, dataset, processes)
        else:
            gallery = _open_gallery(members, dataset if similarities else None)
        found = _rank(gallery, protocols, dataset, split, processes)
    if processes.main:
        if dataset is not None:
            _say_shared(dataset)
        name = (model or members[0][0]).name
        _show(found, name if len(members) < 2 else f"ensemble of {len(members)}", markdown)
        if output is not None:
            _write(found, split, output)


def _check_source(options: Mapping[str, object], data: str | None, dim: int | None) -> None:
    """Refuse all but one of the ways to say what is ranked, and what does not fit that one."""
    given = [name for name, value in options.items() if value]
    if len(given) != 1:
        raise ConfigError(
            f"{' and '.join(given) or 'none'} of --model, --embeddings and --similarities was "
            "given; give one of them"
        )
    if data is None and given != ["--embeddings"]:
        raise ConfigError(f"{given[0]} needs --data, the dataset folder that is ranked")
    if dim is not None and given != ["--model"]:
        raise ConfigError(f"--dim {dim} cuts a model's embeddings: give --model, or embed with it")


def _weighted(text: str) -> tuple[Path, float]:
    path, equals, weight = text.rpartition("=")
    if not equals:
        return Path(text), 1.0
    try:
        value = float(weight)
    except ValueError:
        return Path(text), 1.0  # a path with an equals sign in it
    if not 0 < value < float("inf"):
        raise ConfigError(f"{text}: its weight is {weight}; give one above 0")
    return Path(path), value


def _open_dataset(
    protocol: str,
    protocols: Mapping[str, RankingProtocol],
    data: str | None,
    split: str,
    cache_dir: Path | None,
    *,
    needed: bool,
) -> ShardDataset | None:
    """Open the split where it is needed; check what can be checked before it is encoded."""
    from vse_scale.data.shards import ShardDataset

    ordered = protocols[protocol].needs_source_order
    if ordered and data is None:
        raise ConfigError(
            f"--protocol {protocol} cuts folds in the order of the source; give --data, the "
            "dataset that was embedded"
        )
    dataset = None
    if data is not None and (needed or ordered):
        dataset = ShardDataset(data, split, staged_in(cache_dir))
    for opened in protocols.values():
        opened.check(split, None if dataset is None else dataset.captions_per_sample)
    return dataset


def _encode(encoder: Encoder, dataset: ShardDataset | None, processes: Processes) -> Embeddings:
    assert dataset is not None  # a model is evaluated on one
    with progress_of_encoding(visible=processes.main) as progress:
        return encoder.split(dataset, processes, progress)


def _open_gallery(members: list[tuple[Path, float]], dataset: ShardDataset | None) -> Gallery:
    """Open saved embeddings or, given their dataset, saved similarities."""
    from vse_scale.retrieval.gallery import similarities_of
    from vse_scale.retrieval.saved import ensemble

    return ensemble(members) if dataset is None else similarities_of(dataset, members)


def _rank(
    gallery: Gallery,
    protocols: Mapping[str, RankingProtocol],
    dataset: ShardDataset | None,
    split: str,
    processes: Processes,
) -> dict[str, Result]:
    """Rank by every protocol: by the first in all processes, by the others in the main one."""
    from vse_scale.retrieval.encode import Embeddings
    from vse_scale.retrieval.gallery import source_ids

    if isinstance(gallery, Embeddings):
        gallery = gallery.to(best_device())
    (name, chosen), *others = protocols.items()
    order = source_ids(dataset) if dataset is not None and chosen.needs_source_order else None
    found = {name: chosen.rank(gallery, split=split, order=order, processes=processes)}
    if processes.main:
        found |= {name: other.rank(gallery, split=split) for name, other in others}
    return found


def _say_shared(dataset: ShardDataset) -> None:
    """Say how many captions other images have too: ranking counts each as one image's alone."""
    from vse_scale.data.equal import shared_captions

    records = (dataset.record(index) for index in range(len(dataset)))
    shared, total = shared_captions([c.text for c in record.captions] for record in records)
    if shared:
        log.warning(
            "%d of %d captions (%.1f%%) are also another image's, word for word: each counts for "
            "its own image alone, so even a perfect model ranks some of them wrong",
            shared, total, 100 * shared / total,
        )  # fmt: skip


def _show(found: Mapping[str, Result], name: str, markdown: bool) -> None:
    tables = [one.markdown(name) if markdown else one.table() for one in found.values()]
    tell_page("\n\n".join(tables))


def _write(found: Mapping[str, Result], split: str, output: Path) -> None:
    chosen, *others = found
    figures = {**found[chosen].to_dict(), "split": split}
    figures |= {name: found[name].to_dict() for name in others}
    write_output(output, json.dumps(figures, indent=1) + "\n")
