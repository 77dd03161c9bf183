"""Model folders for the Auto classes of transformers, with the methods that CLIP has there.

Examples:
    >>> import vse_scale.interchange.auto  # from here on the Auto classes know these folders
    >>> from transformers import AutoModel, AutoProcessor
    >>> model = AutoModel.from_pretrained("models/mine")
    >>> processor = AutoProcessor.from_pretrained("models/mine")
    >>> inputs = processor(text=["a dog in the snow", "two cups"])
    >>> model.get_text_features(**inputs).pooler_output.shape
    torch.Size([2, 1024])

``SentenceTransformer("models/mine")`` opens one by the same classes. Without the import both ask
for ``trust_remote_code=True``: the folder's ``modeling_vse_scale.py`` then imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput

from vse_scale.config.model import ModelConfig
from vse_scale.errors import ModelError
from vse_scale.inputs.pictures import resized_batches
from vse_scale.inputs.spec import MODEL_TYPE
from vse_scale.model import hub
from vse_scale.model.vse import VSEModel

if TYPE_CHECKING:
    from vse_scale.inputs.pictures import Picture

# The options of `from_pretrained` that say which files of the hub are meant.
_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")
# Options that change nothing here, and that transformers and sentence-transformers hand over.
_WITHOUT_EFFECT = ("_from_auto", "adapter_kwargs", "proxies", "trust_remote_code", "_commit_hash")


class VSEAutoConfig(PreTrainedConfig):  # type: ignore[misc]
    """The ``config.json`` of a model folder; its keys are attributes.

    Attributes:
        model: the settings of a run's model section.
        vocab_size: number of token ids.
        pad_id: the token id that fills a batch.
        projection_dim: D, the width of embeddings.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        vocab_size: int = 0,
        pad_id: int = 0,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.model = dict(model or {})
        self.vocab_size, self.pad_id = vocab_size, pad_id
        self.projection_dim: int = self.model.get("embed_dim", 0)


class VSEAutoModel(PreTrainedModel):  # type: ignore[misc]
    """A `VSEModel` behind the methods of transformers' CLIPModel.

    Args:
        config: of a model folder.
        model: the model; None makes one of random weights.

    Raises:
        ModelError: ``config`` does not describe a model.
    """

    config_class = VSEAutoConfig
    base_model_prefix = "vse"
    main_input_name = "pixel_values"

    def __init__(self, config: VSEAutoConfig, model: VSEModel | None = None) -> None:
        super().__init__(config)
        if model is None:
            settings = ModelConfig.read(config.model)
            limit = (getattr(config, "input_spec", None) or {}).get("max_tokens")
            sizes = (config.vocab_size, config.pad_id)
            model = VSEModel(settings, *sizes, *(() if limit is None else (limit,)))
        self.vse = model

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *_: Any, **options: Any
    ) -> VSEAutoModel:
        """Open a model folder, or a model of the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: the folder, or ``org/name``.
            options: ``config``, ``dtype``, ``device_map`` (one device, or "auto"), and those that
                say which files of the hub are meant: ``revision``, ``cache_dir``, ``token``,
                ``local_files_only``, ``force_download``.

        Raises:
            ModelError: it cannot be opened.
            ValueError: an option is none of these.
        """
        folder = _folder(pretrained_model_name_or_path, options)
        config = options.pop("config", None)
        dtype, device = _dtype(options, config), _device(options.pop("device_map", None))
        if unknown := [name for name, value in options.items() if value not in (None, False)]:
            raise ValueError(
                f"{', '.join(sorted(unknown)):.80}: has no effect on a model of vse_scale; take it "
                "out (dtype, device_map, revision, cache_dir, token and local_files_only have one)"
            )
        if config is None:
            config = VSEAutoConfig.from_pretrained(folder)
        made = cls(config, VSEModel.from_pretrained(folder)).eval()
        return made.to(device=device, dtype=dtype)  # type: ignore[no-any-return]

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write a model folder, with the tokenizer of the one that it was opened from."""
        self.vse.save_pretrained(save_directory, self.vse.tokenizer)

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Embed token ids.

        Args:
            input_ids: (n, L) int64, padding after the tokens.
            attention_mask: (n, L), 1 for tokens and 0 for padding; None: there is no padding.

        Returns:
            ``pooler_output`` (n, D), unit rows.

        Raises:
            ValueError: padding stands before tokens.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
            raise ValueError("padding stands before tokens; set padding_side='right'")
        lengths = attention_mask.sum(1).long().clamp(min=1)
        return BaseModelOutputWithPooling(
            pooler_output=self.vse.encode_captions(input_ids, lengths)
        )

    def get_image_features(
        self, pixel_values: Tensor, lengths: Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Embed pictures.

        Args:
            pixel_values: (n, 3, S, S) floating, as the processor makes them; for a region model
                features (n, K, C).
            lengths: (n,) int64, how many regions of a row are no padding; None: all.

        Returns:
            ``pooler_output`` (n, D), unit rows.
        """
        rows = self.vse.encode_images(pixel_values.to(self.dtype), lengths)
        return BaseModelOutputWithPooling(pooler_output=rows)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> CLIPOutput:
        """Score n pictures against m texts; ``logits_per_image`` (n, m) are cosines."""
        texts = self.get_text_features(input_ids, attention_mask).pooler_output
        images = self.get_image_features(pixel_values).pooler_output
        scores = images @ texts.T
        return CLIPOutput(
            logits_per_image=scores,
            logits_per_text=scores.T,
            text_embeds=texts,
            image_embeds=images,
        )


class VSEProcessor(ProcessorMixin):  # type: ignore[misc]
    """Texts and pictures to what `VSEAutoModel` takes, by the model's own tokenizer and resizing.

    Args:
        folder: of the model.

    Raises:
        ModelError: the folder is damaged.
    """

    attributes: ClassVar[list[str]] = []

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        from vse_scale.model.folder import input_spec, tokenizer_of

        self._spec = input_spec(Path(folder))
        self._words = tokenizer_of(Path(folder))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> VSEProcessor:
        """Open the processor of a model folder, or of a model of the hub."""
        return cls(_folder(pretrained_model_name_or_path, options))

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write nothing but the tokenizer: the model's ``save_pretrained`` describes pictures."""
        if self._words is not None:
            self._words.save(save_directory)

    def __call__(
        self,
        images: Picture | Sequence[Picture] | None = None,
        text: str | Sequence[str] | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Return the model's inputs.

        Args:
            images: n paths, images of Pillow's, or arrays (H, W, 3) uint8 RGB; or one.
            text: m texts, or one; those longer than the model's limit are cut.

        Returns:
            ``input_ids`` and ``attention_mask`` (m, L) int64, ``pixel_values`` (n, 3, S, S)
            float32.

        Raises:
            ModelError: the model has no tokenizer, or takes region features.
            DatasetError: a picture cannot be read.
        """
        found: dict[str, Tensor] = {}
        if text is not None:
            if self._words is None:
                raise ModelError("the model has no tokenizer; import it again with --tokenizer DIR")
            texts = [text] if isinstance(text, str) else list(text)
            ids, lengths = self._words.encode(texts, max_tokens=self._spec.max_tokens)
            found["input_ids"] = torch.from_numpy(ids)
            columns = torch.arange(ids.shape[1])
            found["attention_mask"] = (columns < torch.from_numpy(lengths)[:, None]).long()
        if images is not None:
            if (pixels := self._spec.pixels) is None:
                raise ModelError("a region model takes features; give them to get_image_features")
            several: Any = images if isinstance(images, list | tuple) else [images]
            (raw,) = resized_batches(several, pixels, len(several))
            found["pixel_values"] = pixels.normalise(raw)
        return BatchFeature(found)


def _folder(name: str | Path, options: dict[str, Any]) -> Path:
    """Return the folder of a model, out of the hub's cache where ``name`` is none here."""
    chosen = {key: options.pop(key) for key in _OF_THE_HUB if key in options}
    for key in _WITHOUT_EFFECT:
        options.pop(key, None)
    inner = options.pop("subfolder", None) or ""
    if Path(name).is_dir():
        return Path(name) / inner
    given = {key: value for key, value in chosen.items() if value is not None}
    return hub.fetch(str(name), **given) / inner


def _dtype(options: dict[str, Any], config: Any) -> torch.dtype | None:
    # transformers 5.6 writes the dtype that AutoModel is given into `config` alone.
    given = options.pop("dtype", None) or options.pop("torch_dtype", None)
    given = given or getattr(config, "dtype", None)
    return None if given in (None, "auto") else getattr(torch, str(given).removeprefix("torch."))


def _device(given: Any) -> torch.device | None:
    if isinstance(given, dict) and set(given) == {""}:
        given = given[""]
    if given == "auto":
        given = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(given, dict):
        raise ValueError("device_map: a model of vse_scale lies on one device; name it")
    return None if given is None else torch.device(given)


AutoConfig.register(MODEL_TYPE, VSEAutoConfig, exist_ok=True)
AutoModel.register(VSEAutoConfig, VSEAutoModel, exist_ok=True)
AutoProcessor.register(VSEAutoConfig, VSEProcessor, exist_ok=True)
