"""A model without its weights: every parameter has its shape and takes no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from vse_scale.config import Config, ModelConfig
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel

_WORDS = 10_000  # of a vocabulary that is yet to be made; COCO's and Flickr30K's are of this size


def blueprint(config: Config) -> tuple[VSEModel, list[str]]:
    """Lay out the model that ``config`` describes on torch's meta device.

    Nothing is read but the folders of encoders and tokenizers, where they are there.

    Returns:
        The model, and what had to be assumed for it, one line each.

    Raises:
        ModelError: such a folder, or an architecture, is wrong.
    """
    bare, assumed = _weightless(config.model)
    with torch.device("meta"):
        return VSEModel(bare, _vocab_size(config), 0), assumed


def _weightless(model: ModelConfig) -> tuple[ModelConfig, list[str]]:
    """Return ``model`` without files of weights, and what had to be assumed for it."""
    raw, assumed = model.model_dump(), []
    raw["init_from"] = raw["image"]["weights"] = None
    for tower, usual in (("text", "bert"), ("image", "resnet")):
        path = raw[tower]["path"]
        if path is None:
            continue
        if Path(path).is_dir():
            found: Any = AutoConfig.from_pretrained(path, local_files_only=True)
            if tower == "image":
                found = getattr(found, "vision_config", found)
        else:
            found = AutoConfig.for_model(usual)
            assumed.append(f"{path} is not there: counted as transformers' default {usual}")
        known = AutoConfig.for_model(found.model_type).to_dict()
        described = {k: v for k, v in found.to_dict().items() if k in known}
        raw[tower] |= {"path": None, "architecture": described}
    return ModelConfig.model_validate(raw), assumed


def _vocab_size(config: Config) -> int:
    text = config.model.text
    given = text.tokenizer or config.model.init_from
    if given and Path(given).exists():
        return CaptionTokenizer.load(given).vocab_size
    # An encoder from a folder has its own table, whatever the tokenizer knows.
    return _WORDS if text.encoder == "bigru" else 1 if text.path else text.vocab_size
