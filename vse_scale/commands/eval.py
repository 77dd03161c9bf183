"""``vse-scale eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vse_scale.commands.common import best_device, check_writable
from vse_scale.console import log, progress_of_encoding
from vse_scale.errors import ConfigError
from vse_scale.run.folder import model_folder

if TYPE_CHECKING:
    from vse_scale.retrieval.encode import Embeddings
    from vse_scale.retrieval.protocols.cxc import CxcEvaluation
    from vse_scale.retrieval.protocols.eccv import EccvFigures
    from vse_scale.retrieval.protocols.folds import Evaluation
    from vse_scale.retrieval.similarities import Similarities
    from vse_scale.world.processes import Processes

_CXC = "cxc"
T = TypeVar("T")


def evaluate(
    model: Annotated[Path | None, typer.Option(help="a model folder, or a run's folder")] = None,
    data: Annotated[str | None, typer.Option(help="a dataset folder, or its URL")] = None,
    split: Annotated[str, typer.Option(help="the split to rank")] = "test",
    protocol: Annotated[
        str, typer.Option(help="plain, coco-1k, coco-5k, flickr30k or cxc")
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
    batch: Annotated[int, typer.Option(min=1, help="images encoded at once")] = 64,
    threads: Annotated[int, typer.Option(min=1, help="decoding threads")] = 2,
) -> None:
    """Rank a split in both directions by a model, or by what models saved.

    Started once per process by a launcher, such as torchrun, the processes share the work.
    """
    _check(model, data, protocol, embeddings, similarities, cxc, as_published, eccv)
    check_writable("--json", output)
    members = [_weighted(text) for text in [*(embeddings or []), *(similarities or [])]]
    log.info("evaluating %s", model or ", ".join(str(path) for path, _ in members))
    from vse_scale.retrieval.protocols.folds import check_protocol
    from vse_scale.world.join import joined

    if protocol != _CXC:
        check_protocol(protocol)
    with joined() as processes:
        gallery: Embeddings | Similarities
        if similarities:
            gallery = _open_similarities(members, _some(data), split)
        elif embeddings:
            from vse_scale.retrieval.saved import ensemble

            gallery = ensemble(members)
        else:
            gallery = _encode(_some(model), _some(data), split, batch, threads, processes)
        order = _source_order(data, split, protocol)
        found = _rank(gallery, protocol, order, split, cxc, as_published, processes)
        beside = _eccv(gallery, eccv) if eccv is not None and processes.main else {}
    if not processes.main:
        return
    name = (model or members[0][0]).name if len(members) < 2 else f"ensemble of {len(members)}"
    print(found.markdown(name) if markdown else found.table())
    if beside:
        from vse_scale.retrieval.protocols.eccv import eccv_table

        print(f"\n{eccv_table(beside, name if markdown else None)}")
    if output is not None:
        figures = {**found.to_dict(), "split": split}
        if beside:
            figures["eccv"] = {way: part.to_dict() for way, part in beside.items()}
        output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _check(
    model: Path | None,
    data: str | None,
    protocol: str,
    embeddings: list[str] | None,
    similarities: list[str] | None,
    cxc: Path | None,
    as_published: bool,
    eccv: Path | None,
) -> None:
    given = [
        name
        for name, value in (
            ("--model", model), ("--embeddings", embeddings), ("--similarities", similarities),
        )
        if value
    ]  # fmt: skip
    if len(given) != 1:
        what = " and ".join(given) or "none"
        raise ConfigError(
            f"{what} of --model, --embeddings and --similarities was given; give one of them"
        )
    if data is None and not embeddings:
        raise ConfigError(f"{given[0]} needs --data, the dataset folder that is ranked")
    if protocol == _CXC and cxc is None:
        raise ConfigError("--protocol cxc needs --cxc DIR, the folder of its CSV files")
    if protocol != _CXC and (cxc is not None or as_published):
        raise ConfigError(f"--cxc and --as-published are of --protocol cxc, not of {protocol}")
    if similarities and (protocol == _CXC or eccv is not None):
        raise ConfigError(
            "--similarities are of images and captions alone; cxc and --eccv need --embeddings"
        )


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


def _some(given: T | None) -> T:
    assert given is not None  # `_check` has seen to it
    return given


def _encode(
    model: Path, data: str, split: str, batch: int, threads: int, processes: Processes
) -> Embeddings:
    from vse_scale.data.shards import ShardDataset
    from vse_scale.inputs.tokens import CaptionTokenizer
    from vse_scale.model.vse import VSEModel
    from vse_scale.retrieval.encode import encode_split

    device = best_device()
    opened = VSEModel.from_pretrained(model_folder(model)).to(device)
    tokenizer = CaptionTokenizer.load(model_folder(model))
    dataset = ShardDataset(data, split)
    with progress_of_encoding(visible=processes.main) as progress:
        return encode_split(
            opened, tokenizer, dataset,
            batch=batch, device=device, threads=threads, progress=progress,
            rank=processes.rank, ranks=processes.ranks,
        )  # fmt: skip


def _open_similarities(members: list[tuple[Path, float]], data: str, split: str) -> Similarities:
    """Map the files; their rows and columns are in the order of the source."""
    import torch

    from vse_scale.data.shards import ShardDataset
    from vse_scale.retrieval.similarities import open_similarities

    dataset = ShardDataset(data, split)
    found = [dataset.record(image) for image in range(len(dataset))]  # shard by shard
    records = [found[image] for image in dataset.source_order()]
    owners = [row for row, record in enumerate(records) for _ in record.captions]
    return open_similarities(
        members,
        [record.image_id for record in records],
        [caption.id for record in records for caption in record.captions],
        torch.tensor(owners, dtype=torch.int64),
    )


def _source_order(data: str | None, split: str, protocol: str) -> list[Any] | None:
    """Return image ids in the order of the source, where folds are cut: a build shuffles them."""
    from vse_scale.data.shards import ShardDataset
    from vse_scale.retrieval.protocols.folds import PROTOCOLS

    if protocol == _CXC or PROTOCOLS[protocol].folds == 1:
        return None
    if data is None:
        raise ConfigError(
            f"--protocol {protocol} cuts folds in the order of the source; give --data, the "
            "dataset that was embedded"
        )
    dataset = ShardDataset(data, split)
    ids = [dataset.record(image).image_id for image in range(len(dataset))]  # shard by shard
    return [ids[image] for image in dataset.source_order()]


def _rank(
    gallery: Embeddings | Similarities,
    protocol: str,
    order: list[Any] | None,
    split: str,
    cxc: Path | None,
    as_published: bool,
    processes: Processes,
) -> Evaluation | CxcEvaluation:
    from vse_scale.retrieval.encode import Embeddings
    from vse_scale.retrieval.protocols.cxc import evaluate_cxc
    from vse_scale.retrieval.protocols.folds import evaluate as evaluate_protocol

    if isinstance(gallery, Embeddings):
        gallery = gallery.to(best_device())
    if protocol != _CXC:
        return evaluate_protocol(protocol, gallery, order, processes)
    assert isinstance(gallery, Embeddings)
    which = "val" if split == "val" else "test"
    return evaluate_cxc(gallery, _some(cxc), which, as_published=as_published, processes=processes)


def _eccv(gallery: Embeddings | Similarities, folder: Path) -> dict[str, EccvFigures]:
    from vse_scale.retrieval.encode import Embeddings
    from vse_scale.retrieval.protocols.eccv import evaluate_eccv

    assert isinstance(gallery, Embeddings)
    return evaluate_eccv(gallery, folder)
