"""The text tower over a transformer: a Hugging Face encoder, projection, pooling."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vse_scale.errors import ModelError
from vse_scale.model.huggingface import describe, new_model, open_model
from vse_scale.model.pooling.mean import PoolKind, make_pool

# These take a mask of the full shape and add nothing to it, as causal or windowed attention would.
_TAKE_FULL_MASK = frozenset(
    {"bert", "distilbert", "roberta", "xlm-roberta", "camembert", "electra", "albert"}
)

if TYPE_CHECKING:
    from vse_scale.config import TextConfig


class TextEncoder(nn.Module):
    """Encoder -> one vector per token -> Linear -> pooling.

    Args:
        config: the text section of a model's configuration.
        embed_dim: D of the embeddings.
        vocab_size: number of token ids.
        pad_id: the token id that fills a batch.
        dropout: of all of the encoder's layers; None keeps its own.
        pool: makes one vector of a caption's.

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
        pool: PoolKind = "gpo",
    ) -> None:
        super().__init__()
        prepare = partial(_set_dropout, dropout=dropout)
        if config.path is not None:
            model = open_model(
                Path(config.path), "model.text.path", prepare, unused=["pooler", "decoder"]
            )
        else:
            given = {"vocab_size": vocab_size, "pad_token_id": pad_id, **config.architecture}
            model = new_model(given, "bert", "model.text.architecture", prepare)
        self._described = describe(model)
        self.encoder = model.get_encoder() if model.config.is_encoder_decoder else model
        # Its output is not used: left in, it would be weights that never get a gradient.
        self.encoder.pooler = None
        self._full_mask = model.config.model_type in _TAKE_FULL_MASK
        known = int(self.encoder.config.vocab_size)
        if vocab_size > known:
            raise ModelError(
                f"{config.path or 'model.text.architecture'}: knows {known} tokens, the tokenizer "
                f"{vocab_size}; give the encoder its own tokenizer, or a larger vocab_size"
            )
        self.projection = nn.Linear(self.encoder.config.hidden_size, embed_dim)
        self.pool = make_pool(pool)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``token_ids`` (P, L), of which ``lengths`` (P,) are no padding, into (P, D).

        Raises:
            ModelError: L is more than the encoder has positions for.
        """
        tokens = token_ids.shape[1]
        limit = getattr(self.encoder.config, "max_position_embeddings", None) or tokens
        if tokens > limit:
            raise ModelError(
                f"captions of {tokens} tokens, and the text encoder has {limit} positions; "
                f"set data.max_caption_tokens={limit}"
            )
        mask = torch.arange(tokens, device=lengths.device) < lengths[:, None]
        if self._full_mask:
            # Given the full shape, transformers does not look at the values, which on a GPU would
            # wait for all that is queued.
            mask = mask[:, None, None, :].expand(-1, 1, tokens, -1)
        hidden = self.encoder(input_ids=token_ids, attention_mask=mask).last_hidden_state
        pooled: Tensor = self.pool(self.projection(hidden), lengths)
        return pooled

    def architecture(self) -> dict[str, Any]:
        """Return what builds this encoder again, without weights, as `TextConfig.architecture`."""
        return self._described


def _set_dropout(config: Any, dropout: float | None) -> Any:
    """Set every dropout probability of a transformers configuration, whatever their names."""
    if dropout is not None:
        for key, value in config.to_dict().items():
            # t5 says dropout_rate, gpt2 resid_pdrop.
            if ("dropout" in key or key.endswith("_pdrop")) and isinstance(value, float):
                setattr(config, key, dropout)
    return config
