"""Batches of texts and of pixels to embeddings: one way, which every command shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from vse_scale.errors import ModelError
from vse_scale.inputs.pictures import resized_batches
from vse_scale.inputs.spec import InputSpec

if TYPE_CHECKING:
    from vse_scale.inputs.pictures import Picture
    from vse_scale.inputs.tokens import CaptionTokenizer


class Encoder(Protocol):
    """The part of `VSEModel` that embedding needs."""

    input_spec: InputSpec
    training: bool

    def encode_images(self, images: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed normalised pixels (B, 3, S, S), or regions (B, K, C) of ``lengths``, as (B, D)."""
        ...

    def encode_captions(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Embed token ids (B, L) of ``lengths`` (B,) as (B, D)."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Enter training (True) or evaluation (False)."""
        ...


@contextmanager
def evaluating(model: Encoder) -> Iterator[None]:
    """Run the block in evaluation mode and without gradients; the mode is restored after it."""
    was_training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def by_length(texts: Sequence[str]) -> list[int]:
    """Return the indices of ``texts``, short ones first: batches of like length pad little.

    Characters rather than tokens, so that the order is known before anything is tokenised.
    """
    return sorted(range(len(texts)), key=lambda index: len(texts[index]))


def text_batches(
    model: Encoder,
    tokenizer: CaptionTokenizer,
    texts: Sequence[str],
    *,
    batch: int,
    device: torch.device | str,
) -> Iterator[Tensor]:
    """Yield the embeddings (b, D) of ``texts``, ``batch`` at a time, in their order.

    Texts are cut at the model's ``input_spec.max_tokens``; which share was, is logged once.
    """
    limit = model.input_spec.max_tokens
    full: list[str] = []
    for start in range(0, len(texts), batch):
        chosen = texts[start : start + batch]
        token_ids, lengths = tokenizer.encode(chosen, max_tokens=limit)
        full += [text for text, length in zip(chosen, lengths, strict=True) if length == limit]
        yield model.encode_captions(
            torch.from_numpy(token_ids).to(device), torch.from_numpy(lengths).to(device)
        )
    tokenizer.report_cut(full, len(texts), limit)


def embed_texts(
    model: Encoder,
    tokenizer: CaptionTokenizer | None,
    texts: Sequence[str],
    *,
    batch: int,
    device: torch.device | str,
) -> Tensor:
    """Embed ``texts`` in evaluation mode, those of like length together.

    Returns:
        (n, D) float32 on the CPU, unit rows in the order of ``texts``.

    Raises:
        ModelError: there is no tokenizer.
        ValueError: ``texts`` is one string, or empty.
    """
    if tokenizer is None:
        raise ModelError(
            "the model has no tokenizer; import it again with --tokenizer DIR, or save it with "
            "save_pretrained(folder, tokenizer)"
        )
    _check_several("texts", texts)
    order = by_length(texts)
    in_order = [texts[index] for index in order]
    with evaluating(model):
        batches = text_batches(model, tokenizer, in_order, batch=batch, device=device)
        embedded = torch.cat([rows.float().cpu() for rows in batches])
    result = torch.empty_like(embedded)
    result[torch.tensor(order)] = embedded
    return result


def embed_pictures(
    model: Encoder, pictures: Sequence[Picture], *, batch: int, device: torch.device | str
) -> Tensor:
    """Read and embed pictures in evaluation mode.

    Args:
        model: one that takes pixels.
        pictures: files, images of Pillow's or arrays, as `read_picture` takes them.
        batch: pictures encoded at once.
        device: of the model.

    Returns:
        (n, D) float32 on the CPU, unit rows.

    Raises:
        ModelError: the model takes region features.
        DatasetError: a picture cannot be read.
        ValueError: ``pictures`` is one path, or empty.
    """
    spec = model.input_spec.pixels
    if spec is None:
        raise ModelError(
            "a region model takes a detector's features; give --data, a dataset that has them, or "
            "a query in words (in Python, give the features to encode_images)"
        )
    _check_several("images", pictures)
    decoded = resized_batches(pictures, spec, batch)
    return embed_pixels(model, (pixels.to(device) for pixels in decoded))


def _check_several(what: str, given: Sequence[Any]) -> None:
    if isinstance(given, str | bytes | Path) or not len(given):
        raise ValueError(f"{what} is {given!r:.80}; give a list of at least one")


def pixel_batches(model: Encoder, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the embeddings (b, D) of decoded images, (b, S, S, 3) uint8 on the model's device."""
    spec = model.input_spec.pixels
    assert spec is not None  # the caller has seen to it
    for pixels in batches:
        yield model.encode_images(spec.normalise(pixels))


def embed_pixels(model: Encoder, batches: Iterable[Tensor]) -> Tensor:
    """Embed decoded images in evaluation mode.

    Args:
        model: one that takes pixels.
        batches: one or more of (b, S, S, 3) uint8 RGB, on the model's device.

    Returns:
        (n, D) float32 on the CPU, unit rows.
    """
    with evaluating(model):
        return torch.cat([rows.float().cpu() for rows in pixel_batches(model, batches)])
