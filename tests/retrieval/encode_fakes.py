"""A dataset, tokenizer and model of a few lines each, with the interfaces of the real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vse_scale.inputs.pixels import ImageSpec
from vse_scale.inputs.spec import InputSpec


@dataclass
class FakeCaption:
    id: int
    text: str


@dataclass
class FakeRecord:
    image_id: str
    captions: list[FakeCaption]


class FakeDataset:
    split = "val"
    features = None

    def __init__(self, images: int, captions: bool = True) -> None:
        counts = [index % 4 if captions else 0 for index in range(images)]
        starts = np.cumsum([0, *counts])
        self.records = [
            FakeRecord(
                f"image-{index}",
                [FakeCaption(1000 + c, "w" * (1 + c * 7 % 11)) for c in range(start, start + n)],
            )
            for index, (start, n) in enumerate(zip(starts, counts, strict=False))
        ]

    def __len__(self) -> int:
        return len(self.records)

    def check_holds(self, kind) -> None:
        assert kind == "images"

    def record(self, index: int) -> FakeRecord:
        return self.records[index]


class FakeTokenizer:
    """One token per letter; its id is its place."""

    def encode(self, texts, max_tokens=128):
        lengths = np.array([min(len(text), max_tokens) for text in texts])
        ids = np.broadcast_to(np.arange(lengths.max()), (len(texts), lengths.max()))
        return ids * (ids < lengths[:, None]), lengths

    def report_cut(self, full, total, max_tokens):
        pass


class FakeSpec(ImageSpec):
    def normalise(self, pixels):
        return pixels.permute(0, 3, 1, 2).float() / 255


def read_images(dataset, indices, spec, *, batch, device, threads):
    for start in range(0, len(indices), batch):
        drawn = [
            np.random.default_rng(int(i)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            for i in indices[start : start + batch]
        ]
        yield torch.from_numpy(np.stack(drawn)).to(device)


class FakeModel(torch.nn.Module):
    input_spec = InputSpec(FakeSpec.preset("imagenet", 8))

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 24, 3)
        self.words = torch.nn.Embedding(16, 24)
        self.dropout = torch.nn.Dropout(0.5)
        self.image_batches: list[int] = []
        self.caption_batches: list[list[int]] = []

    def encode_images(self, pixels):
        self.image_batches.append(len(pixels))
        pooled = self.dropout(self.conv(pixels)).mean((2, 3))
        return torch.nn.functional.normalize(pooled, dim=1)

    def encode_captions(self, token_ids, lengths):
        self.caption_batches.append(lengths.tolist())
        mask = torch.arange(token_ids.shape[1]) < lengths[:, None]
        pooled = (self.dropout(self.words(token_ids)) * mask[..., None]).sum(1)
        return torch.nn.functional.normalize(pooled, dim=1)


def make_model() -> FakeModel:
    torch.manual_seed(0)
    return FakeModel()
