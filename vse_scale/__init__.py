"""High-throughput training of image-text retrieval models.

Examples:
    >>> from vse_scale import VSEModel
    >>> model = VSEModel.from_pretrained("runs/demo")
    >>> model.similarity(images=["photo.jpg"], texts=["a dog in the snow"])
    tensor([[0.53]])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from vse_scale.config import Config
    from vse_scale.inputs.pictures import Picture
    from vse_scale.model.vse import VSEModel
    from vse_scale.retrieval.protocols.folds import Evaluation
    from vse_scale.training.watch.observers import Follower

__all__ = ["Config", "VSEModel", "embed", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    # On demand, so that the command's --help and its checks do not wait for torch, and a model
    # opens without pydantic.
    if name == "VSEModel":
        from vse_scale.model.vse import VSEModel

        return VSEModel
    if name == "Config":
        from vse_scale.config import Config

        return Config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def train(config: Config, observers: Sequence[Follower] = ()) -> int:
    """Train as ``config`` says, in this process; go on where an earlier call was stopped.

    Examples:
        >>> from vse_scale import Config, train
        >>> train(Config.load("launch/recipes/small.yaml", ["data.path=data/mine"]))
        0

    Args:
        config: of the run.
        observers: objects that are told of each step, validation and checkpoint, on the main rank;
            one that raises an exception is dropped with one warning.

    Returns:
        0 at the end of the schedule, 75 where a signal stopped it earlier.

    Raises:
        UserError: the configuration, the dataset, a model or a checkpoint does not fit, an observer
            lacks a method, or packages of the extra ``train`` are not installed.
    """
    from vse_scale.run.extras import require

    require("train", "training")
    from vse_scale.training.trainer import train
    from vse_scale.training.watch.observers import check_followers

    check_followers(observers)
    return train(config, observers)


def evaluate(
    model: VSEModel | str | Path,
    data: str | Path,
    split: str = "test",
    protocol: str = "plain",
    *,
    batch: int = 64,
    threads: int = 2,
) -> Evaluation:
    """Rank a dataset's split in both directions, as ``vse-scale eval`` does.

    Examples:
        >>> from vse_scale import evaluate
        >>> evaluate("runs/mine", "data/mine", split="val").recalls.rsum
        412.7

    Args:
        model: a model, its folder, or that of the run that trained it.
        data: a dataset folder, or its URL.
        split: of the dataset.
        protocol: plain, coco-1k, coco-5k or flickr30k.
        batch: images, and captions, encoded at once.
        threads: that decode images.

    Raises:
        UserError: the model or the dataset is missing or damaged, or does not fit the protocol.
    """
    from vse_scale.data.shards import ShardDataset
    from vse_scale.retrieval.protocols.folds import check_protocol
    from vse_scale.retrieval.protocols.folds import evaluate as rank

    check_protocol(protocol)
    dataset = ShardDataset(str(data), split)
    ids = [dataset.record(image).image_id for image in range(len(dataset))]
    order = [ids[image] for image in dataset.source_order()]
    return rank(protocol, _encoded(model, dataset, batch, threads), order)


def embed(
    model: VSEModel | str | Path,
    images: Sequence[Picture] | None = None,
    texts: Sequence[str] | None = None,
    *,
    data: str | Path | None = None,
    split: str = "test",
    batch: int = 64,
    threads: int = 2,
) -> Tensor | tuple[Tensor, Tensor]:
    """Embed pictures, texts, or the images and captions of a dataset's split.

    Examples:
        >>> from vse_scale import embed
        >>> embed("runs/mine", texts=["a dog in the snow", "two cups"]).shape
        torch.Size([2, 1024])
        >>> images, captions = embed("runs/mine", data="data/mine", split="val")

    Args:
        model: a model, its folder, or that of the run that trained it.
        images: n paths, images of Pillow's, or arrays (H, W, 3) uint8 RGB.
        texts: m texts.
        data: a dataset folder, or its URL, in place of images and texts.
        split: of the dataset.
        batch: images, and texts, encoded at once.
        threads: that decode a dataset's images.

    Returns:
        (n, D) or (m, D) float32 on the CPU, unit rows; where both sides are asked for, the pair.

    Raises:
        UserError: the model, a picture or the dataset is missing or damaged.
        ValueError: not exactly one of a dataset, and pictures and texts, is given.
    """
    if data is None:
        opened: Any = _opened(model)  # its overloads want to know which of the two is given
        rows: Tensor | tuple[Tensor, Tensor] = opened.embed(images, texts, batch=batch)
        return rows
    if images is not None or texts is not None:
        raise ValueError("give either data, or images and texts")
    from vse_scale.data.shards import ShardDataset

    embeddings = _encoded(model, ShardDataset(str(data), split), batch, threads)
    return embeddings.images, embeddings.captions


def _opened(model: VSEModel | str | Path) -> VSEModel:
    """Open a model on the best device of this machine, where a folder is given."""
    if not isinstance(model, str | Path):
        return model
    import torch

    from vse_scale.model.vse import VSEModel

    return VSEModel.from_pretrained(model).to("cuda" if torch.cuda.is_available() else "cpu")


def _encoded(model: VSEModel | str | Path, dataset: Any, batch: int, threads: int) -> Any:
    from vse_scale.errors import ModelError
    from vse_scale.retrieval.encode import encode_split

    opened = _opened(model)
    if opened.tokenizer is None:
        raise ModelError("the model has no tokenizer; import it again with --tokenizer DIR")
    device = next(opened.parameters()).device
    return encode_split(
        opened, opened.tokenizer, dataset, batch=batch, device=device, threads=threads
    )
