"""Checkpoints of the published VSE-infinity code, as models of our own.

A published file is ``{"model": [image_state_dict, text_state_dict], "opt": argparse.Namespace,
"epoch", "best_rsum", "Eiters"}``, every key with the prefix ``module.`` that nn.DataParallel adds.
Each tensor of it is used, or named as left out with the reason; one that is neither is an error.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from vse_scale.config import ModelConfig
from vse_scale.errors import ModelError
from vse_scale.model.towers.resnet import BACKBONES, ResNet
from vse_scale.model.vse import VSEModel
from vse_scale.model.weights import load_exactly

Tensors = dict[str, Tensor]

_BASE_SIZE = 256  # pixels; the published option input_scale_factor multiplies it
_GRID_SIZE = 512  # pixels, of the published grid recipes
_NOTES = ("data_name", "epoch", "best_rsum")
_RECIPE = (
    "batch_size", "learning_rate", "lr_update", "num_epochs", "margin", "max_violation",
    "vse_mean_warmup_epochs", "grad_clip", "optim",
)  # fmt: skip
_HEAD_CHANNELS = 64  # per attention head, in every BERT that was published

# What the published code stores and never uses, by pattern, with the reason.
_UNUSED = {
    r"image\.backbone\.resnet\.fc\.(weight|bias)": "the classifier",
    r"image\.mlp\.bns\.1\..*": "the MLP's last BatchNorm, which is never applied",
    r"text\.bert\.pooler\..*": "BERT's pooler, whose output is not used",
    r"text\.bert\.embeddings\.position_ids": "a counter that old releases of transformers saved",
}
# The ResNet is registered twice: as ``resnet`` and, cut in two, as ``base`` and ``top``.
_TWINS = {
    r"backbone\.base\.0\.": "backbone.resnet.conv1.",
    r"backbone\.base\.1\.": "backbone.resnet.bn1.",
    r"backbone\.base\.(4|5|6)\.": "backbone.resnet.layer{}.",
    r"backbone\.top\.0\.": "backbone.resnet.layer4.",
}
# Prefixes of theirs and of ours.
_GRID_NAMES = {
    "image.backbone.resnet.": "image.backbone.",
    "image.image_encoder.fc.": "image.projection.",
    "image.image_encoder.gpool.": "image.pool.",
}
_REGION_NAMES = {
    "image.fc.": "image.projection.",
    "image.mlp.layers.0.": "image.hidden.",
    "image.mlp.bns.0.": "image.norm.",
    "image.mlp.layers.1.": "image.output.",
    "image.gpool.": "image.pool.",
}
_BERT_NAMES = {
    "text.bert.": "text.encoder.",
    "text.linear.": "text.projection.",
    "text.gpool.": "text.pool.",
}
_WORDS = "text.embed.weight"
_BIGRU_NAMES = {
    "text.embed.": "text.encoder.embed.",
    "text.rnn.": "text.encoder.rnn.",
    "text.gpool.": "text.pool.",
}


@dataclass(frozen=True)
class Imported:
    """A published checkpoint as a model of ours.

    Attributes:
        model: in evaluation mode.
        left_out: how many tensors of the file were not used, by reason.
        notes: what the file says of itself.
        recipe: what it says of its training.
        sources: what each tower started from, by side.
    """

    model: VSEModel
    left_out: dict[str, int]
    notes: dict[str, Any]
    recipe: dict[str, Any]
    sources: dict[str, str]


def import_published(
    path: Path, *, backbone: str | None = None, size: int | None = None, pad_id: int = 0
) -> Imported:
    """Read a published checkpoint.

    Args:
        path: ``model_best.pth``.
        backbone: overrules what the file says of its grid backbone. A ResNet-101 of torchvision
            and of the bottom-up-attention detector have the same shapes, and other pixels.
        size: of the images in pixels, both sides; overrules what the file says.
        pad_id: the token id that fills a batch.

    Raises:
        ModelError: the file is missing, damaged, or holds something else.
    """
    published, options = _read(path)
    published, left_out = _without_unused(published, path)
    image, names = _image_section(published, options, backbone, size, path)
    text, vocab_size, text_names = _text_section(published, path)
    ours = _renamed(published, names | text_names, path)
    embed_dim = len(ours["image.projection.bias"])
    try:
        config = ModelConfig.model_validate({"embed_dim": embed_dim, "image": image, "text": text})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ModelError(
            f"{path}: this release does not build such a model "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']})"
        ) from error
    model = VSEModel(config, vocab_size=vocab_size, pad_id=pad_id)
    load_exactly(model, ours, str(path))
    return Imported(
        model.eval(),
        left_out,
        {"file": path.name} | _options(options, _NOTES),
        _options(options, _RECIPE),
        _sources(config, options),
    )


def _options(options: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: options[name] for name in names if isinstance(options.get(name), str | int | float)
    }


def _sources(config: ModelConfig, options: Mapping[str, Any]) -> dict[str, str]:
    """Say what each tower started from, as far as the published code leaves a choice."""
    images = "" if config.image.backbone == "regions" else str(options.get("backbone_source") or "")
    if not images and config.image.backbone != "regions":
        images = config.image.backbone
    text = "bert-base-uncased" if config.text.architecture else ""
    return {"images": images, "captions": text}


def _read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors, named ``image.*`` and ``text.*``, and the options beside them."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give a published model_best.pth")
    try:
        # Allowed by name, and nothing more: unpickling any other class could run anything.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds a {found[1]}" if found else "is no checkpoint"
        raise ModelError(
            f"{path}: {what}, and only tensors, plain values and argparse.Namespace are read; "
            "give a file that the published code saved"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    parts = loaded.get("model") if isinstance(loaded, Mapping) else None
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise ModelError(
            f"{path}: holds no pair of state dicts under 'model'; give a checkpoint of the "
            "published VSE-infinity code"
        )
    tensors: Tensors = {}
    for side, part in zip(("image", "text"), parts, strict=True):
        if not isinstance(part, Mapping) or not all(isinstance(v, Tensor) for v in part.values()):
            raise ModelError(f"{path}: its {side} part holds something other than tensors by name")
        tensors |= {f"{side}.{str(k).removeprefix('module.')}": v for k, v in part.items()}
    options = dict(vars(loaded["opt"])) if isinstance(loaded.get("opt"), argparse.Namespace) else {}
    options |= {key: loaded[key] for key in ("epoch", "best_rsum") if key in loaded}
    return tensors, options


def _without_unused(published: Tensors, path: Path) -> tuple[Tensors, dict[str, int]]:
    kept, left_out = {}, dict[str, int]()
    for key, tensor in published.items():
        reason = next((why for what, why in _UNUSED.items() if re.fullmatch(what, key)), None)
        twin = _twin(key)
        if twin is not None:
            if twin not in published or not torch.equal(published[twin], tensor):
                raise ModelError(f"{path}: {key} differs from its second name {twin}")
            reason = "second names of the backbone's tensors"
        if reason is None:
            kept[key] = tensor
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    return kept, left_out


def _twin(key: str) -> str | None:
    for pattern, name in _TWINS.items():
        if found := re.match(rf"image\.{pattern}", key):
            stage = int(found[1]) - 3 if found.groups() else 0
            return f"image.{name.format(stage)}{key[found.end() :]}"
    return None


def _image_section(
    published: Tensors, options: dict[str, Any], backbone: str | None, size: int | None, path: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the image section of a model's configuration, and the names to use."""
    if "image.fc.weight" in published:
        if backbone not in (None, "regions"):
            raise ModelError(f"{path}: is a region model; leave out --backbone {backbone}")
        channels = published["image.fc.weight"].shape[1]
        return {"backbone": "regions", "region_channels": channels}, _REGION_NAMES
    fitting = _fitting_backbones(published)
    source = str(options.get("backbone_source", ""))
    if backbone is None and len(fitting) > 1 and source:
        # Of networks of one shape the published code built torchvision's, or the detector's.
        plain = [name for name in fitting if name != "detector" and not name.endswith("_caffe")]
        backbone = "detector" if "detector" in source else plain[0]
    if backbone is None and len(fitting) == 1:
        backbone = fitting[0]
    if not fitting:
        raise ModelError(
            f"{path}: its image encoder is none that is known; {', '.join(BACKBONES)} are"
        )
    if backbone is None or backbone not in fitting:
        given = f"--backbone {backbone} does not fit it" if backbone else "it does not say which"
        raise ModelError(
            f"{path}: its backbone has the shapes of {' or '.join(fitting)}, and "
            f"{given}; give --backbone NAME"
        )
    if size is None:
        factor = options.get("input_scale_factor")
        size = _GRID_SIZE if factor is None else round(_BASE_SIZE * float(factor))
    pixels = "detector" if backbone == "detector" else "imagenet"
    return {"backbone": backbone, "pixels": pixels, "size": size}, _GRID_NAMES


def _fitting_backbones(published: Tensors) -> list[str]:
    prefix = "image.backbone.resnet."
    shapes = {k.removeprefix(prefix): v.shape for k, v in published.items() if k.startswith(prefix)}
    fitting = []
    for name, architecture in BACKBONES.items():
        with torch.device("meta"):
            own = ResNet(architecture).state_dict()
        if {key: value.shape for key, value in own.items()} == shapes:
            fitting.append(name)
    return fitting


def _text_section(published: Tensors, path: Path) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Return the text section of a model's configuration, the token ids, and the names to use."""
    for marker, describe, names in _TEXT_ENCODERS:
        if marker in published:
            return describe(published), len(published[marker]), names
    raise ModelError(
        f"{path}: its text encoder is neither of those known "
        f"({', '.join(marker for marker, _, _ in _TEXT_ENCODERS)} is missing)"
    )


def _bert(published: Tensors) -> dict[str, Any]:
    words, hidden = published["text.bert.embeddings.word_embeddings.weight"].shape
    layer = r"text\.bert\.encoder\.layer\.(\d+)\."
    layers = {int(found[1]) for key in published if (found := re.match(layer, key))}
    inner = published["text.bert.encoder.layer.0.intermediate.dense.bias"]
    architecture = {
        "vocab_size": words,
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(hidden // _HEAD_CHANNELS, 1),
        "intermediate_size": len(inner),
        "max_position_embeddings": len(
            published["text.bert.embeddings.position_embeddings.weight"]
        ),
        "type_vocab_size": len(published["text.bert.embeddings.token_type_embeddings.weight"]),
    }
    return {"architecture": architecture}


def _bigru(published: Tensors) -> dict[str, Any]:
    return {"encoder": "bigru", "word_channels": published[_WORDS].shape[1]}


_TEXT_ENCODERS: tuple[tuple[str, Callable[[Tensors], dict[str, Any]], dict[str, str]], ...] = (
    ("text.bert.embeddings.word_embeddings.weight", _bert, _BERT_NAMES),
    (_WORDS, _bigru, _BIGRU_NAMES),
)


def _renamed(published: Tensors, names: dict[str, str], path: Path) -> Tensors:
    ours, unknown = {}, []
    for key, tensor in published.items():
        prefix = next((prefix for prefix in names if key.startswith(prefix)), None)
        if prefix is None:
            unknown.append(key)
        else:
            ours[names[prefix] + key.removeprefix(prefix)] = tensor
    if unknown:
        raise ModelError(
            f"{path}: {len(unknown)} of its tensors have no place in our model, the first is "
            f"{unknown[0]}"
        )
    return ours
