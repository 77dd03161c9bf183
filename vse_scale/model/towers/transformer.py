"""The text tower over a transformer: a Hugging Face encoder, projection, pooling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vse_scale.bounds import Fraction, Ge
from vse_scale.errors import ModelError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.adapters import LoRA
from vse_scale.model.huggingface import (
    architecture_of,
    describe,
    first_line,
    new_model,
    open_model,
    tower_config,
)
from vse_scale.model.pooling import make_pool
from vse_scale.model.towers.base import ChannelDropout, TextSettings, project_and_pool
from vse_scale.model.towers.held import HeldStates

# These take a mask of the full shape and add nothing to it, as causal or windowed attention would.
_TAKE_FULL_MASK = frozenset(
    {"bert", "distilbert", "roberta", "xlm-roberta", "camembert", "electra", "albert"}
)

_SAME = 0.01  # of the largest value


@dataclass(frozen=True, kw_only=True)
class TransformerSettings(TextSettings):
    """Settings of a text encoder of transformers, from a folder or new.

    Attributes:
        path: folder with config.json and weights; None: ``architecture``, random.
        vocab_size: most word pieces of a vocabulary that is made from the captions; ours.
        architecture: keys of its transformers configuration; ``model_type`` is bert by default.
        lora: adapters that train in place of the encoder's weights; None: the weights train.
        drop_channels: share of the encoder's channels that the projection misses in training, the
            same ones in all tokens of a caption. For heads over a frozen encoder.
        layers: last layers of the encoder whose states the projection sees side by side. Of a
            frozen encoder several tell more than the last (Devlin et al., "BERT", NAACL 2019,
            table 7).
    """

    licenses: ClassVar[Mapping[str, str]] = {
        "bert-base": "Apache-2.0 (Google's BERT)",
        "bert-large": "Apache-2.0 (Google's BERT)",
    }

    path: str | None = None
    vocab_size: Annotated[int, Ge(32)] = 8000
    architecture: dict[str, Any] = field(default_factory=dict)
    lora: LoRA | None = None
    drop_channels: Fraction = 0.0
    layers: Annotated[int, Ge(1)] = 1

    @property
    def source(self) -> str | None:
        """Folder whose weights the tower starts from; None: random ones."""
        return self.path

    def describe(self) -> str:
        """Return the folder's name, or the type of the model and its layers."""
        if self.path:
            return Path(self.path).name
        kind = self.architecture.get("model_type", "BERT")
        layers = self.architecture.get("num_hidden_layers")
        return f"{kind} of {layers} layers" if layers else str(kind)

    def make_tokenizer(self, captions: Iterable[str]) -> CaptionTokenizer:
        """Make a vocabulary of word pieces from ``captions``.

        Raises:
            ModelError: the captions hold no word.
        """
        return CaptionTokenizer.train(captions, self.vocab_size)

    def expected_vocab_size(self) -> int:
        """Return the most pieces that are made; an encoder from a folder has its own table."""
        return 1 if self.path else self.vocab_size

    def weightless(self) -> tuple[Self, list[str]]:
        """Return settings without files of weights, and assumptions made, one line each."""
        if self.path is None:
            return self, []
        architecture, assumed = architecture_of(Path(self.path), "bert", _text_side)
        lora = None if assumed else self.lora  # its targets are the folder's encoder's
        return replace(self, path=None, architecture=architecture, lora=lora), assumed


class TransformerTower(nn.Module):
    """Encoder -> one vector per token -> Linear -> pooling.

    Args:
        settings: of the tower.
        embed_dim: D of the embeddings.
        pool: name of the pooling that makes one vector of a caption's.
        vocab_size: number of token ids.
        pad_id: the token id that fills a batch.
        dropout: of all of the encoder's layers; None keeps its own.

    Raises:
        ModelError: the encoder cannot be built or loaded, or knows fewer tokens than
            ``vocab_size``.
    """

    Settings = TransformerSettings

    def __init__(
        self,
        settings: TransformerSettings,
        embed_dim: int,
        pool: str = "gpo",
        *,
        vocab_size: int,
        pad_id: int,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        self._settings = settings
        prepare = partial(_set_dropout, dropout=dropout)
        if settings.path is not None:
            model = open_model(
                Path(settings.path), "model.text.path", prepare, unused=["pooler", "decoder"]
            )
        else:
            model = new_model(
                settings.architecture,
                "bert",
                "model.text.architecture",
                prepare,
                {"vocab_size": vocab_size, "pad_token_id": pad_id},
            )
        self._described = describe(model)
        self.encoder = model.get_encoder() if model.config.is_encoder_decoder else model
        self._config = getattr(self.encoder, "config", model.config)
        self._origin = settings.path or "model.text.architecture"
        pooler = getattr(self.encoder, "pooler", None)
        if isinstance(pooler, nn.Module):
            # Its output is not used: left in, it would be weights that never get a gradient. Some
            # models call it without looking whether it is there.
            self.encoder.pooler = nn.Identity()
        self._full_mask = model.config.model_type in _TAKE_FULL_MASK
        known, width = (self._size(key) for key in ("vocab_size", "hidden_size"))
        if known is None or width is None:
            raise ModelError(f"{self._origin}: {model.config.model_type} is no encoder of texts")
        if vocab_size > known:
            raise ModelError(
                f"{self._origin}: knows {known} tokens, the tokenizer {vocab_size}; give the "
                "encoder its own tokenizer, or a larger vocab_size"
            )
        depth = self._size("num_hidden_layers") or 1
        if settings.layers > depth:  # before the weights, which would take all memory
            raise ModelError(
                f"model.text.layers is {settings.layers}, and {self._origin} has {depth}; give at "
                "most that"
            )
        self.projection = nn.Linear(settings.layers * width, embed_dim)
        self.drop = ChannelDropout(settings.drop_channels)
        self.pool = make_pool(pool)
        self.held: HeldStates | None = None

    def _size(self, key: str) -> int | None:
        found = getattr(self._config, key, None)
        return found if isinstance(found, int) else None

    @property
    def positions(self) -> int | None:
        """Most tokens of a caption, special ones included; None: no limit."""
        limit = self._size("max_position_embeddings")
        for name, module in self.encoder.named_modules():
            # RoBERTa and its kin count from the padding's id on: the rows up to it are lost.
            padding = getattr(module, "padding_idx", None)
            if "position" in name and padding is not None and hasattr(module, "num_embeddings"):
                limit = module.num_embeddings - padding - 1
        return limit if limit and limit > 0 else None

    @torch.no_grad()
    def check_length(self, tokens: int) -> None:
        """Encode a caption of ``tokens``, and one of half as many with and without padding.

        Raises:
            ModelError: the encoder takes no caption of that length, or its embedding is not
                finite, depends on the padding, or is another one each time.
        """
        device = self.projection.weight.device
        if device.type == "meta":
            return
        half = max(1, tokens // 2)
        # As far from special tokens as may be.
        ids = torch.full((1, tokens), max(0, self._size("vocab_size") or 0) // 2)
        ids, training = ids.to(device), self.training
        self.eval()
        try:
            whole = [self(ids, torch.tensor([tokens], device=device)) for _ in range(2)]
            length = torch.tensor([half], device=device)
            alone, padded = self(ids[:, :half], length), self(ids, length)
        except ModelError:
            raise
        except Exception as error:  # whatever a kind of model makes of it
            raise ModelError(
                f"{self._origin}: takes no captions of {tokens} tokens ({first_line(error)})"
            ) from error
        finally:
            self.train(training)
        if not torch.stack([*whole, alone]).isfinite().all():
            raise ModelError(f"{self._origin}: gives values that are not finite")
        for these, those, why in (
            (*whole, "encodes one caption to other values each time"),
            (alone, padded, "gives a caption other values beside longer ones"),
        ):
            # Of one caption in two shapes of batch, sums differ in their last bits.
            if (these - those).abs().max() > _SAME * these.abs().max():
                raise ModelError(f"{self._origin}: {why}; give another encoder")

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``token_ids`` (P, L), of which ``lengths`` (P,) are no padding, into (P, D).

        Where ``held`` has the states of all captions, the encoder does not run.

        Raises:
            ModelError: L is more than the encoder has positions for.
        """
        hidden = None if self.held is None else self.held.find(token_ids, lengths)
        if hidden is None:
            hidden = self.states(token_ids, lengths)
        return project_and_pool(hidden, lengths, self.drop, self.projection, self.pool)

    def states(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return what the encoder makes of ``token_ids`` (P, L): (P, L, H), before all else.

        H is the width of the encoder, times the ``layers`` of the settings.

        Raises:
            ModelError: L is more than the encoder has positions for.
        """
        tokens = token_ids.shape[1]
        limit = self.positions
        if limit is not None and tokens > limit:
            raise ModelError(
                f"captions of {tokens} tokens, and the text encoder has {limit} positions; "
                f"set data.max_caption_tokens={limit}"
            )
        mask = torch.arange(tokens, device=lengths.device) < lengths[:, None]
        # Given the full shape, transformers does not look at the values, which on a GPU would wait
        # for all that is queued. Others get the numbers that the library's tokenizers give.
        full = mask[:, None, None, :].expand(-1, 1, tokens, -1)
        mask = full if self._full_mask else mask.long()
        layers = self._settings.layers
        more = {"output_hidden_states": True} if layers > 1 else {}
        out = self.encoder(input_ids=token_ids, attention_mask=mask, **more)
        if layers == 1:
            hidden: Tensor = out.last_hidden_state
            return hidden
        # Of encoders that end in a normalisation the last of them is not yet normalised.
        return torch.cat([*out.hidden_states[-layers:-1], out.last_hidden_state], dim=-1)

    def standalone(self) -> TransformerSettings:
        """Return settings that build the tower again, without weights and tokenizer."""
        return replace(
            self._settings, path=None, tokenizer=None, architecture=self._described, lora=None
        )

    def recompute_activations(self) -> None:
        """Let training keep the inputs of each layer alone, and compute the rest again."""
        self.encoder.gradient_checkpointing_enable({"use_reentrant": False})


def _text_side(config: Any) -> Any:
    return tower_config(config, "text")


def _set_dropout(config: Any, dropout: float | None) -> Any:
    """Take the text side of a transformers configuration; set its dropout, however it is named."""
    config = _text_side(config)
    if dropout is not None:
        for key, value in config.to_dict().items():
            # t5 says dropout_rate, gpt2 resid_pdrop.
            if ("dropout" in key or key.endswith("_pdrop")) and isinstance(value, float):
                setattr(config, key, dropout)
    return config
