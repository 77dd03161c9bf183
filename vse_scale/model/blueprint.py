"""A model without its weights: every parameter has its shape and takes no memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from vse_scale.config import Config
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.folder import settings_folder
from vse_scale.model.vse import VSEModel


def blueprint(config: Config) -> tuple[VSEModel, list[str]]:
    """Lay out the model that ``config`` describes on torch's meta device.

    Nothing is read but the folders of encoders and tokenizers, where they are there.

    Returns:
        The model, and what had to be assumed for it, one line each.

    Raises:
        ModelError: such a folder, or an architecture, is wrong.
    """
    text, of_text = config.model.text.weightless()
    image, of_image = config.model.image.weightless()
    bare = replace(config.model, init_from=None, text=text, image=image)
    with torch.device("meta"):
        model = VSEModel(bare, _vocab_size(config), 0, config.data.max_caption_tokens)
    return model, [*of_text, *of_image]


def _vocab_size(config: Config) -> int:
    start = config.model.init_from
    started = settings_folder(Path(start)) if start and Path(start).exists() else None
    given = config.model.text.tokenizer or started
    if given and Path(given).exists():
        return CaptionTokenizer.load(given).vocab_size
    size: int = config.model.text.expected_vocab_size()
    return size
