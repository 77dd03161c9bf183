"""The text tower: a Hugging Face encoder, projection, pooling."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from vse_scale.config import TextConfig
from vse_scale.errors import ModelError
from vse_scale.model.gpo import GPO


class TextEncoder(nn.Module):
    """Encoder -> one vector per token -> Linear -> GPO.

    Args:
        config: the text section of a model's configuration.
        embed_dim: D of the embeddings.
        vocab_size: number of token ids.
        pad_id: the token id that fills a batch.
        dropout: of all of the encoder's layers; None keeps its own.

    Raises:
        ModelError: the encoder cannot be built or loaded, or knows fewer tokens than
            ``vocab_size``.
    """

    def __init__(
        self,
        config: TextConfig,
        embed_dim: int,
        *,
        vocab_size: int,
        pad_id: int,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        if config.path is not None:
            self.encoder = _load_encoder(Path(config.path), dropout)
        else:
            self.encoder = _new_encoder(config.architecture, vocab_size, pad_id, dropout)
        # Its output is not used: left in, it would be weights that never get a gradient.
        self.encoder.pooler = None
        known = int(self.encoder.config.vocab_size)
        if vocab_size > known:
            raise ModelError(
                f"{config.path or 'model.text.architecture'}: knows {known} tokens, the tokenizer "
                f"{vocab_size}; give the encoder its own tokenizer, or a larger vocab_size"
            )
        self.projection = nn.Linear(self.encoder.config.hidden_size, embed_dim)
        self.pool = GPO()

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``token_ids`` (P, L), of which ``lengths`` (P,) are no padding, into (P, D).

        Raises:
            ModelError: L is more than the encoder has positions for.
        """
        tokens = token_ids.shape[1]
        limit = getattr(self.encoder.config, "max_position_embeddings", tokens)
        if tokens > limit:
            raise ModelError(
                f"captions of {tokens} tokens, and the text encoder has {limit} positions; "
                f"set data.max_caption_tokens={limit}"
            )
        present = torch.arange(tokens, device=lengths.device) < lengths[:, None]
        # Given the full shape, transformers does not look at the values, which on a GPU would
        # wait for all that is queued.
        mask = present[:, None, None, :].expand(-1, 1, tokens, -1)
        hidden = self.encoder(input_ids=token_ids, attention_mask=mask).last_hidden_state
        pooled: Tensor = self.pool(self.projection(hidden), lengths)
        return pooled

    def architecture(self) -> dict[str, Any]:
        """Return what builds this encoder again, without weights, as `TextConfig.architecture`."""
        described: dict[str, Any] = self.encoder.config.to_dict()
        # Where the weights came from means nothing elsewhere.
        described.pop("_name_or_path", None)
        return described


def _new_encoder(
    architecture: dict[str, Any], vocab_size: int, pad_id: int, dropout: float | None
) -> Any:
    """Build an encoder with random weights; a BERT unless ``model_type`` says otherwise."""
    given = {"vocab_size": vocab_size, "pad_token_id": pad_id, **architecture}
    kind = given.pop("model_type", "bert")
    try:
        known = AutoConfig.for_model(kind).to_dict()
    except ValueError as error:
        raise ModelError(
            f"model.text.architecture.model_type is {kind!r}, which is unknown"
        ) from error
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ModelError(f"unknown key model.text.architecture.{key}; did you mean {near[0]}?")
    config = AutoConfig.for_model(kind, **given)
    _set_dropout(config, dropout)
    try:
        return AutoModel.from_config(config, attn_implementation="sdpa")
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"model.text.architecture: {_first_line(error)}") from error


def _load_encoder(folder: Path, dropout: float | None) -> Any:
    if not folder.is_dir():
        raise ModelError(f"model.text.path is {folder}: no such folder; it is never downloaded")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        _set_dropout(config, dropout)
        encoder, found = AutoModel.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"{folder}: cannot be opened as an encoder ({_first_line(error)})"
        ) from error
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ModelError(f"{folder}: weights are missing: {', '.join(missing)}")
    return encoder


def _set_dropout(config: Any, dropout: float | None) -> None:
    """Set every dropout probability of a transformers configuration, whatever their names."""
    if dropout is None:
        return
    for key, value in config.to_dict().items():
        if "dropout" in key and isinstance(value, float):
            setattr(config, key, dropout)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
