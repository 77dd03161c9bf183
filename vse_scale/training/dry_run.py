"""What a run would be: its resolved configuration, and the disk that it would need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from vse_scale.config import Config, ModelConfig
from vse_scale.data.captions import CaptionTokenizer
from vse_scale.model.vse import VSEModel

_WORDS = 10_000  # of a vocabulary that is yet to be made; COCO's and Flickr30K's are of this size
_FLOAT = 4  # bytes: weights and moments are kept in float32


def describe_run(config: Config) -> str:
    """Return ``config`` as YAML, with an estimate of its checkpoints' size as a comment below.

    Nothing is read but the folders of encoders and tokenizers, where they are there.

    Raises:
        ModelError: such a folder, or an architecture, is wrong.
    """
    counted, assumed = _weightless(config.model)
    with torch.device("meta"):
        model = VSEModel(counted, _vocab_size(config), 0)
    weights = sum(p.numel() for p in (*model.parameters(), *model.buffers())) * _FLOAT
    moments = 2 if config.optim.algorithm == "adamw" else 0
    one = weights + moments * sum(p.numel() for p in model.parameters()) * _FLOAT
    keep = config.run.keep_checkpoints
    total = (keep + 1) * one + 2 * weights
    lines = [
        f"checkpoints: {_size(one)} each; with {keep} kept and one being written, and the best "
        f"model ({_size(weights)}) likewise, {_size(total)}",
        *assumed,
    ]
    return config.to_yaml() + "".join(f"# {line}\n" for line in lines)


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


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
