"""A model without its weights: every parameter has its shape and takes no memory."""

from __future__ import annotations

from pathlib import Path

import torch

from vse_scale.config import ModelConfig
from vse_scale.errors import ModelError
from vse_scale.model.vse import VSEModel


def blueprint(config: ModelConfig) -> VSEModel:
    """Lay out the model that ``config`` describes on torch's meta device.

    A vocabulary that is yet to be made counts with the size that was asked for.

    Raises:
        ModelError: there is no such model.
    """
    text, vocab_size = config.text, config.text.vocab_size
    if text.path is not None:
        if not Path(text.path).is_dir():
            raise ModelError(f"model.text.path is {text.path}: no such folder")
        from transformers import AutoConfig

        try:
            known = AutoConfig.from_pretrained(text.path, local_files_only=True).to_dict()
        except (OSError, ValueError) as error:
            raise ModelError(f"{text.path}: cannot be opened as an encoder ({error})") from error
        known.pop("_name_or_path", None)
        text = text.model_copy(update={"path": None, "architecture": known})
        vocab_size = known["vocab_size"]
    image = config.image.model_copy(update={"weights": None})
    bare = config.model_copy(update={"image": image, "text": text, "init_from": None})
    with torch.device("meta"):
        return VSEModel(bare, vocab_size, pad_id=0)
