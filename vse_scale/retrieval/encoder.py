"""A model that embeds texts, image files, images of a dataset, or a whole split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vse_scale.data.shards import ShardDataset
from vse_scale.errors import ModelError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.embedding import embed_pictures, embed_texts, evaluating
from vse_scale.model.vse import VSEModel
from vse_scale.retrieval.encode import Embeddings, Progress, encode_split, image_embeddings
from vse_scale.world.processes import Processes


@dataclass(frozen=True)
class Encoder:
    """A model with everything that it needs to embed.

    Attributes:
        model: in evaluation mode, on ``device``.
        tokenizer: its own.
        device: of the model.
        batch: items encoded at once.
        threads: decoding threads.
    """

    model: VSEModel
    tokenizer: CaptionTokenizer | None
    device: torch.device
    batch: int
    threads: int

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed ``texts`` as (n, D) float32 on the CPU, like lengths together."""
        tokenizer = self._own_tokenizer()
        return embed_texts(self.model, tokenizer, texts, batch=self.batch, device=self.device)

    def pictures(self, pictures: Sequence[bytes]) -> Tensor:
        """Embed image files, given their bytes, as (n, D) float32 on the CPU."""
        return embed_pictures(self.model, pictures, batch=self.batch, device=self.device)

    def images(self, dataset: ShardDataset, rows: Iterable[int]) -> Tensor:
        """Embed the pixels or regions of images ``rows``, as (n, D) float32 on the CPU."""
        with evaluating(self.model):
            parts = image_embeddings(
                self.model, dataset, rows,
                batch=self.batch, device=self.device, threads=self.threads,
            )  # fmt: skip
            return torch.cat([part.float().cpu() for part in parts])

    def split(
        self, dataset: ShardDataset, processes: Processes, progress: Progress | None = None
    ) -> Embeddings:
        """Embed all images and captions of ``dataset``; see `encode_split`."""
        return encode_split(
            self.model,
            self._own_tokenizer(),
            dataset,
            batch=self.batch,
            device=self.device,
            threads=self.threads,
            rank=processes.rank,
            ranks=processes.ranks,
            progress=progress,
        )

    def _own_tokenizer(self) -> CaptionTokenizer:
        if self.tokenizer is None:
            raise ModelError("the model has no tokenizer; import it again with --tokenizer DIR")
        return self.tokenizer
