"""The joint embedding of images and captions."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from vse_scale.config.parts import IMAGE_TOWERS, TEXT_TOWERS
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.inputs.spec import MAX_TOKENS, InputSpec
from vse_scale.model import folder as model_folder
from vse_scale.model import hub
from vse_scale.model.adapters import choose_trained
from vse_scale.model.embedding import embed_pictures, embed_texts
from vse_scale.model.layers import layers_above
from vse_scale.model.towers.batchnorm import FrozenBatchNorm2d
from vse_scale.run.folder import model_folder as model_folder_of

if TYPE_CHECKING:
    from vse_scale.config import ModelConfig
    from vse_scale.inputs.pictures import Picture
    from vse_scale.inputs.tokens import CaptionTokenizer


class VSEModel(nn.Module):
    """VSE-infinity: two towers whose embeddings are compared by their dot product.

    Args:
        config: the model section of a run's configuration.
        vocab_size: number of token ids.
        pad_id: the token id that fills a batch.
        max_tokens: of a caption; the text encoder may have fewer positions.

    Attributes:
        config: as given.
        input_spec: everything that the model expects of its inputs.
        grid_cells: cells of an image of ``image_spec.size``, or most regions of one.
        trained_stages: how many of the image backbone's last stages compute gradients; None: all of
            it does.
        output_dim: how many of their first dimensions embeddings are cut to, of unit length again,
            as ``objective.matryoshka`` trains them for; None: they are whole. Training passes over
            it.

    Raises:
        ModelError: weights that the configuration names are missing, damaged or do not fit.
    """

    def __init__(
        self, config: ModelConfig, vocab_size: int, pad_id: int, max_tokens: int = MAX_TOKENS
    ) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.pad_id = vocab_size, pad_id
        # Towers are parts: `vse_scale.model.towers.base` has their protocols.
        self.image: Any = IMAGE_TOWERS.find(config.image.backbone)(
            config.image, config.embed_dim, config.pool
        )
        self.grid_cells: int = self.image.cells
        self.text: Any = TEXT_TOWERS.find(config.text.encoder)(
            config.text,
            config.embed_dim,
            config.pool,
            vocab_size=vocab_size,
            pad_id=pad_id,
            dropout=config.dropout,
        )
        regions = config.image.region_spec()
        pixels = config.image.image_spec() if regions is None else None
        limit = min(max_tokens, self.text.positions or max_tokens)
        self.input_spec = InputSpec(pixels, regions, limit)
        if hasattr(self.text, "check_length"):  # a tower over somebody else's encoder
            self.text.check_length(limit)
        self.trained_stages: int | None = None
        self.output_dim: int | None = None
        self._folder: Path | None = None
        if config.init_from is not None:
            model_folder.load_weights(self, Path(config.init_from))
        self._choose_trained()

    def _choose_trained(self) -> None:
        """Take the gradients off what the settings do not let train; adapters come to it."""
        above = self.layers_above()
        for key, part, settings in (
            ("model.image", self.image.backbone, self.config.image),
            ("model.text", self.text.encoder, self.config.text),
        ):
            if isinstance(part, nn.Module):
                choose_trained(
                    part,
                    key,
                    frozen=settings.frozen,
                    last=settings.train_last,
                    lora=getattr(settings, "lora", None),
                    layers_above=above,
                )

    def train(self, mode: bool = True) -> Self:
        """Enter training or evaluation; a frozen text encoder stays in evaluation."""
        super().train(mode)
        if self.config.text.frozen:
            self.text.encoder.train(False)
        return self

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VSEModel:
        """Open a folder that `save_pretrained` wrote, a run's, or a checkpoint's in its run.

        It is in evaluation mode, on the CPU. ``org/name``, where there is no folder ``org``, is a
        model on Hugging Face's hub, whose files are fetched once.

        The tokenizer is opened when it is first used.

        Raises:
            ModelError: the folder is missing or damaged, or holds something else.
        """
        found = hub.fetch(str(folder)) if hub.is_hub_name(folder) else model_folder_of(Path(folder))
        model = model_folder.load(cls, found)
        model._folder = model_folder.settings_folder(found)
        return model

    @functools.cached_property
    def tokenizer(self) -> CaptionTokenizer | None:
        """The tokenizer in the folder that the model was opened from; None where there is none.

        Raises:
            ModelError: its files are damaged, or are another model's.
        """
        return None if self._folder is None else model_folder.tokenizer_of(self._folder)

    def save_pretrained(
        self, folder: str | Path, tokenizer: CaptionTokenizer | None = None
    ) -> None:
        """Write ``config.json``, ``model.safetensors`` and, where given, the tokenizer's files."""
        model_folder.save(self, Path(folder), tokenizer)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Write the model to the repository ``name`` of Hugging Face's hub; return its address.

        With it go the tokenizer and the model card of the folder that it was opened from;
        ``vse-scale export --push`` writes a card of the run.

        Raises:
            OutputError: the hub refuses it, or does not answer.
        """
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            self.save_pretrained(folder, self.tokenizer)
            if self._folder is not None and (card := self._folder / "README.md").is_file():
                shutil.copy(card, folder)
            return hub.push(folder, name, private=private)

    def forward(
        self,
        images: Tensor,
        token_ids: Tensor,
        token_lengths: Tensor,
        cell_draws: Tensor | None = None,
        region_lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed a batch of N images and P captions.

        Args:
            images: pixels (N, 3, S, S) floating, normalised by `image_spec`; for a region model
                features (N, K, C).
            token_ids: (P, L) int64.
            token_lengths: (P,) int64, how many ids of a row are no padding.
            cell_draws: (N, 1 + grid_cells) uniform draws for size augmentation in training.
            region_lengths: (N,) int64, how many regions of a row are no padding; None: all.

        Returns:
            Image embeddings (N, D) and caption embeddings (P, D), float32 (float64 where the
            weights are), of unit length.

        Raises:
            ValueError: ``region_lengths`` were given for pixels.
        """
        pooled = self.image(images, region_lengths, cell_draws, self.trained_stages)
        return unit_length(pooled), unit_length(self.text(token_ids, token_lengths))

    def encode_images(self, images: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed images as (N, D).

        Args:
            images: pixels (N, 3, H, W) of any size that the backbone accepts; for a region model
                features (N, K, C).
            lengths: (N,) int64, how many regions of a row are no padding; None: all.

        Raises:
            ValueError: ``images`` have another shape, or ``lengths`` were given for pixels.
        """
        self.image.check_shape(images)
        return self._cut(unit_length(self.image(images, lengths, None, self.trained_stages)))

    def encode_captions(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Embed ``token_ids`` (P, L) of ``lengths`` (P,) as (P, D)."""
        return self._cut(unit_length(self.text(token_ids, lengths)))

    @property
    def width(self) -> int:
        """Dimensions of what `encode_images` and `encode_captions` return."""
        whole: int = self.config.embed_dim
        return whole if self.output_dim is None else min(self.output_dim, whole)

    def _cut(self, rows: Tensor) -> Tensor:
        return rows if self.output_dim is None else unit_length(rows[:, : self.output_dim])

    @overload
    def embed(self, images: Sequence[Picture], *, batch: int = 64) -> Tensor: ...
    @overload
    def embed(self, *, texts: Sequence[str], batch: int = 64) -> Tensor: ...
    @overload
    def embed(
        self, images: Sequence[Picture], texts: Sequence[str], *, batch: int = 64
    ) -> tuple[Tensor, Tensor]: ...
    def embed(
        self,
        images: Sequence[Picture] | None = None,
        texts: Sequence[str] | None = None,
        *,
        batch: int = 64,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Embed pictures, texts or both, in evaluation mode, on the model's device.

        Examples:
            >>> rows = model.embed(images=["dog.jpg", "cups.png"])
            >>> rows.shape
            torch.Size([2, 1024])

        Args:
            images: n paths, images of Pillow's, or arrays (H, W, 3) uint8 RGB, in any mixture.
            texts: m texts; those longer than ``input_spec.max_tokens`` are cut.
            batch: pictures, or texts, encoded at once.

        Returns:
            (n, D) or (m, D) float32 on the CPU, unit rows; where both are given, the pair of them.

        Raises:
            ModelError: the model has no tokenizer, or takes region features rather than pictures.
            DatasetError: a picture cannot be read.
            ValueError: neither is given, or no list of at least one.
        """
        if images is None and texts is None:
            raise ValueError("give images, texts, or both")
        device = next(self.parameters()).device
        rows: list[Tensor] = []
        if images is not None:
            rows.append(embed_pictures(self, images, batch=batch, device=device))
        if texts is not None:
            rows.append(embed_texts(self, self.tokenizer, texts, batch=batch, device=device))
        return rows[0] if len(rows) == 1 else (rows[0], rows[1])

    def similarity(
        self, images: Sequence[Picture], texts: Sequence[str], *, batch: int = 64
    ) -> Tensor:
        """Return the scores (n, m) of n pictures and m texts: cosines, float32 on the CPU.

        Examples:
            >>> scores = model.similarity(["dog.jpg"], ["a dog in the snow", "two cups"])
            >>> scores.argmax(1)  # the text that fits each picture best
            tensor([0])

        Args, errors: as `embed`.
        """
        image_rows, text_rows = self.embed(images, texts, batch=batch)
        return image_rows @ text_rows.T

    @property
    def image_spec(self) -> ImageSpec:
        """The pixels that `encode_images` expects; without pixels, those that the settings say."""
        pixels: ImageSpec = self.input_spec.pixels or self.config.image.image_spec()
        return pixels

    @property
    def takes_regions(self) -> bool:
        """Whether images are region features rather than pixels."""
        return bool(self.config.image.takes != "images")

    @property
    def untrained_statistics(self) -> bool:
        """Whether the backbone has frozen BatchNorm statistics that nothing has set yet."""
        given = self.config.image.source or self.config.init_from
        layers = self.image.backbone.modules()
        return not given and any(isinstance(layer, FrozenBatchNorm2d) for layer in layers)

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Return all parameters by what learns together: "heads", "text" and the backbone's stages.

        These are called "backbone.1", "backbone.2" and so on, counted from the last.
        """
        text = list(self.text.encoder.parameters())
        stages: list[list[Parameter]] = self.image.parameter_stages()[::-1]
        others = {id(parameter) for group in (text, *stages) for parameter in group}
        heads = [p for p in self.parameters() if id(p) not in others]
        numbered = {f"backbone.{place}": stage for place, stage in enumerate(stages, start=1)}
        return {"heads": heads, "text": text, **numbered}

    def layers_above(self) -> dict[Parameter, int]:
        """Return the number of layers, or stages, above each parameter of the encoders."""
        stages = self.image.parameter_stages()
        if len(stages) > 1:
            image = {p: above for above, stage in enumerate(stages[::-1]) for p in stage}
        else:
            image = layers_above(self.image.backbone) if stages else {}
        return image | layers_above(self.text.encoder)

    def recompute_activations(self) -> None:
        """Let training keep the inputs of each block or layer alone, and compute the rest again.

        Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
        """
        self.image.recompute_activations()
        self.text.recompute_activations()

    def compile_encoders(self) -> None:
        """Compile the backbone and the text encoder with `torch.compile`, at their first use."""
        self.image.backbone.compile()
        self.text.encoder.compile()

    @torch.no_grad()
    def pooling_weights(self, side: Literal["image", "text"], length: int) -> Tensor | None:
        """Return the pooling's weights (length,), the largest value's first; they sum to 1.

        None for a pooling that does not go by the order of values.
        """
        pool = self.image.pool if side == "image" else self.text.pool
        table: Tensor | None = pool.weight_table(torch.tensor([length]), length)
        return None if table is None else table[0]


def unit_length(pooled: Tensor) -> Tensor:
    """Divide rows (B, D) by their norm, at least in float32, whatever autocast does.

    The published code adds 1e-8 to the norm; so does this, to give what it gives.
    """
    wide = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
    norm: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return wide / (norm + 1e-8)
