"""Checkpoints of the published VSE-infinity code, as models of our own.

A published file is ``{"model": [image_state_dict, text_state_dict], "opt": argparse.Namespace,
"epoch", "best_rsum", "Eiters"}``, every key with the prefix ``module.`` that nn.DataParallel adds.
Each tensor of it is used, or named as left out with the reason; any other is an error.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import ValidationError

from vse_scale.config import ModelConfig
from vse_scale.errors import ModelError
from vse_scale.interchange.published_encoders import Tensors, image_encoder, text_encoder
from vse_scale.model.vse import VSEModel
from vse_scale.model.weights import check_tensors, load_exactly, load_pickled, why_damaged

_WIDTH = "image.projection.bias"  # of all models; its length is that of an embedding
_NOTES = ("data_name", "epoch", "best_rsum")
_RECIPE = (
    "batch_size", "learning_rate", "lr_update", "num_epochs", "margin", "max_violation",
    "vse_mean_warmup_epochs", "grad_clip", "optim",
)  # fmt: skip

# Tensors that the published code stores and never uses, by pattern, with the reason.
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


@dataclass(frozen=True)
class Imported:
    """A published checkpoint as a model of ours.

    Attributes:
        model: in evaluation mode.
        left_out: the number of tensors of the file that were not used, by reason.
        notes: the file's name, data, epoch and RSUM.
        recipe: the options of its training.
        sources: the weights that each tower started from, by "images" and "captions".
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
    image = image_encoder(published, options, path, backbone=backbone, size=size)
    text, vocab_size = text_encoder(published, path)
    ours = _renamed(published, image.names | text.names, path)
    if _WIDTH not in ours:
        raise ModelError(f"{path}: 1 missing: {_WIDTH}; give a whole checkpoint")
    described = {
        "embed_dim": len(ours[_WIDTH]),
        "image": image.section,
        "text": text.section,
    }
    try:
        config = ModelConfig.model_validate(described)
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
        {"images": image.source, "captions": text.source},
    )


def _options(options: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: options[name] for name in names if isinstance(options.get(name), str | int | float)
    }


def _load(path: Path) -> Any:
    """Return the content of a file."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give a published model_best.pth")
    try:
        return load_pickled(path, [argparse.Namespace])
    except ModelError:
        raise
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        content = f"holds a {found[1]}" if found else "is no checkpoint"
        raise ModelError(
            f"{path}: {content}, and only tensors, plain values and argparse.Namespace are read; "
            "give a file that the published code saved"
        ) from error
    except Exception as error:  # a damaged file fails in any part of the reader
        reason = why_damaged(error)
        raise ModelError(f"{path}: cannot be read as a checkpoint ({reason})") from error


def _read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors, named ``image.*`` and ``text.*``, and the options beside them."""
    loaded = _load(path)
    parts = loaded.get("model") if isinstance(loaded, Mapping) else None
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise ModelError(
            f"{path}: holds no pair of state dicts under 'model'; give a checkpoint of the "
            "published VSE-infinity code (towers of CLIP and others, in a folder of transformers, "
            "start a run: model.image.path and model.text.path)"
        )
    tensors: Tensors = {}
    for side, part in zip(("image", "text"), parts, strict=True):
        part = check_tensors(part, f"{path}: its {side} part")
        tensors |= {f"{side}.{k.removeprefix('module.')}": v for k, v in part.items()}
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
