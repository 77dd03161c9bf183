"""A model as a module of sentence-transformers, which embeds texts and pictures by ``encode``.

Examples:
    >>> from sentence_transformers import SentenceTransformer
    >>> from vse_scale.interchange.sentence_transformers import VSEModule
    >>> model = SentenceTransformer(modules=[VSEModule("models/mine")])
    >>> model.encode(["a dog in the snow", "two cups"]).shape
    (2, 1024)

By its path alone a folder opens after ``import vse_scale.interchange.auto``, or where
``trust_remote_code=True`` is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule

from vse_scale.errors import ModelError
from vse_scale.inputs.pictures import resized_batches
from vse_scale.model.embedding import pixel_batches
from vse_scale.model.vse import VSEModel


class VSEModule(InputModule):  # type: ignore[misc]
    """The two towers behind one ``encode``: texts go to the one, pictures to the other.

    A model that takes region features embeds texts alone; pictures need the detector's features,
    which `VSEModel.encode_images` takes.

    Args:
        folder: of a model, or its name on the hub.

    Raises:
        ModelError: it cannot be opened, or has no tokenizer.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.model = VSEModel.from_pretrained(folder)
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise ModelError(f"{folder}: has no tokenizer; import it again with --tokenizer DIR")
        self._words = tokenizer

    @property
    def modalities(self) -> list[str]:
        """The kinds of inputs."""
        return ["text"] if self.model.takes_regions else ["text", "image"]

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Return the token ids of texts, or the pixels of pictures (n, S, S, 3) uint8."""
        if all(isinstance(item, str) for item in inputs):
            limit = self.model.input_spec.max_tokens
            texts = [(prompt or "") + item for item in inputs]
            ids, lengths = self._words.encode(texts, max_tokens=limit)
            return {"input_ids": torch.as_tensor(ids), "lengths": torch.as_tensor(lengths)}
        (pixels,) = resized_batches(list(inputs), self.model.image_spec, len(inputs))
        return {"pixels": pixels}

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Add ``sentence_embedding`` (n, D), rows of unit length."""
        if "pixels" in features:
            (rows,) = pixel_batches(self.model, [features["pixels"]])
        else:
            rows = self.model.encode_captions(features["input_ids"], features["lengths"])
        return {**features, "sentence_embedding": rows}

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return self.model.width

    def save(self, output_path: str, *arguments: Any, **options: Any) -> None:
        """Write the model's folder."""
        self.model.save_pretrained(output_path, self._words)
