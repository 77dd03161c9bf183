"""The encoders of the published VSE-infinity code: how a file tells them, and their names here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vse_scale.errors import ModelError
from vse_scale.model.towers.resnet import BACKBONES, ResNet

Tensors = dict[str, Tensor]

_BASE_SIZE = 256  # pixels; the published option input_scale_factor multiplies it
_GRID_SIZE = 512  # pixels, of the published grid recipes
_HEAD_CHANNELS = 64  # per attention head, in every BERT that was published
# The published option, our backbone and the statistics of its pixels have this one name.
_DETECTOR = "detector"

# Prefixes of theirs and of ours.
_RESNET = "image.backbone.resnet."
_GRID_NAMES = {
    _RESNET: "image.backbone.",
    "image.image_encoder.fc.": "image.projection.",
    "image.image_encoder.gpool.": "image.pool.",
}
_REGIONS = "image.fc.weight"
_REGION_NAMES = {
    "image.fc.": "image.projection.",
    "image.mlp.layers.0.": "image.hidden.",
    "image.mlp.bns.0.": "image.norm.",
    "image.mlp.layers.1.": "image.output.",
    "image.gpool.": "image.pool.",
}
_BERT_WORDS = "text.bert.embeddings.word_embeddings.weight"
_BERT_NAMES = {
    "text.bert.": "text.encoder.",
    "text.linear.": "text.projection.",
    "text.gpool.": "text.pool.",
}
_BIGRU_WORDS = "text.embed.weight"
_BIGRU_NAMES = {
    "text.embed.": "text.encoder.embed.",
    "text.rnn.": "text.encoder.rnn.",
    "text.gpool.": "text.pool.",
}


@dataclass(frozen=True)
class PublishedEncoder:
    """One encoder of a published checkpoint.

    Attributes:
        section: its section of a model's configuration.
        names: prefixes of its tensors, theirs and ours.
        source: the weights that it started from, as far as the published code leaves a choice.
    """

    section: dict[str, Any]
    names: dict[str, str]
    source: str = ""


def image_encoder(
    published: Tensors,
    options: Mapping[str, Any],
    path: Path,
    *,
    backbone: str | None = None,
    size: int | None = None,
) -> PublishedEncoder:
    """Return the image encoder of a file.

    Args:
        published: its tensors.
        options: its options.
        path: of the file, for messages.
        backbone: overrules what the file says of its grid backbone.
        size: of the images in pixels, both sides; overrules what the file says.

    Raises:
        ModelError: the backbone is unknown, or ambiguous, or another than ``backbone``.
    """
    if _REGIONS in published:
        if backbone not in (None, "regions"):
            raise ModelError(f"{path}: is a region model; leave out --backbone {backbone}")
        channels = published[_REGIONS].shape[1]
        return PublishedEncoder({"backbone": "regions", "region_channels": channels}, _REGION_NAMES)
    source = str(options.get("backbone_source") or "")
    name = _chosen(_fitting_backbones(published), source, backbone, path)
    if size is None:
        factor = options.get("input_scale_factor")
        size = _GRID_SIZE if factor is None else round(_BASE_SIZE * float(factor))
    pixels = _DETECTOR if name == _DETECTOR else "imagenet"
    section = {"backbone": name, "pixels": pixels, "size": size}
    return PublishedEncoder(section, _GRID_NAMES, source or name)


def text_encoder(published: Tensors, path: Path) -> tuple[PublishedEncoder, int]:
    """Return the text encoder of a file, and how many token ids it knows.

    Raises:
        ModelError: it is unknown.
    """
    for words, describe in _TEXT_ENCODERS.items():
        if words in published:
            return describe(published), len(published[words])
    raise ModelError(
        f"{path}: its text encoder is unknown ({' and '.join(_TEXT_ENCODERS)} are missing); give "
        "a checkpoint with a BERT or a BiGRU"
    )


def _chosen(fitting: list[str], source: str, asked: str | None, path: Path) -> str:
    """Choose a backbone from those whose shapes fit."""
    if not fitting:
        raise ModelError(f"{path}: its image encoder is unknown; known are {', '.join(BACKBONES)}")
    name = asked
    if name is None and len(fitting) == 1:
        name = fitting[0]
    elif name is None and source:
        # Of networks of one shape the published code built torchvision's, or the detector's.
        plain = [other for other in fitting if not BACKBONES[other].stride_in_first]
        name = _DETECTOR if _DETECTOR in source else plain[0]
    if name in fitting:
        return name
    given = f"--backbone {name} does not fit it" if name else "it does not say which"
    raise ModelError(
        f"{path}: its backbone has the shapes of {' or '.join(fitting)}, and {given}; give "
        "--backbone NAME"
    )


def _fitting_backbones(published: Tensors) -> list[str]:
    shapes = {
        k.removeprefix(_RESNET): v.shape for k, v in published.items() if k.startswith(_RESNET)
    }
    fitting = []
    for name, architecture in BACKBONES.items():
        with torch.device("meta"):
            own = ResNet(architecture).state_dict()
        if {key: value.shape for key, value in own.items()} == shapes:
            fitting.append(name)
    return fitting


def _bert(published: Tensors) -> PublishedEncoder:
    words, hidden = published[_BERT_WORDS].shape
    layer = r"text\.bert\.encoder\.layer\.(\d+)\."
    layers = {int(found[1]) for key in published if (found := re.match(layer, key))}
    inner = published["text.bert.encoder.layer.0.intermediate.dense.bias"]
    positions = published["text.bert.embeddings.position_embeddings.weight"]
    architecture = {
        "vocab_size": words,
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(hidden // _HEAD_CHANNELS, 1),
        "intermediate_size": len(inner),
        "max_position_embeddings": len(positions),
        "type_vocab_size": len(published["text.bert.embeddings.token_type_embeddings.weight"]),
    }
    return PublishedEncoder({"architecture": architecture}, _BERT_NAMES, "bert-base-uncased")


def _bigru(published: Tensors) -> PublishedEncoder:
    channels = published[_BIGRU_WORDS].shape[1]
    return PublishedEncoder({"encoder": "bigru", "word_channels": channels}, _BIGRU_NAMES)


# By the tensor of their word embeddings.
_TEXT_ENCODERS: dict[str, Callable[[Tensors], PublishedEncoder]] = {
    _BERT_WORDS: _bert,
    _BIGRU_WORDS: _bigru,
}
