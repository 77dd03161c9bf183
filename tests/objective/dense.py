"""The objectives by their definitions: one process, the whole score matrix, autograd.

InfoNCE: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, figure 3. Sigmoid: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV
2023, algorithm 1. Hinge: `vse_scale.objective.hinge_loss`, which other tests hold to its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vse_scale.objective import hinge_loss

FIRST = {"temperature", "scale", "bias"}  # settings that learned numbers begin with


def masks(scores: Tensor, ids: Tensor, valid: Tensor, above: float | None):
    """Return (B, B) masks of the images' negatives and of the captions'."""
    negative = (ids[:, None] != ids) & valid[:, None] & valid
    if above is None:
        return negative, negative
    pair = scores.detach().diagonal()
    found = scores.detach()
    return negative & ~(found > pair[:, None] + above), negative & ~(found > pair + above)


def infonce(scores, ids, valid, *, log_scale, label_smoothing=0.0, ignore_above=None):
    rows, columns = masks(scores, ids, valid, ignore_above)
    pairs = torch.eye(len(ids), dtype=torch.bool)
    total = scores.new_zeros(())
    for logits, negative in ((scores, rows), (scores.T, columns.T)):
        there = negative | pairs
        log_p = (logits * log_scale.exp()).masked_fill(~there, -torch.inf).log_softmax(1)
        own, mean = log_p.diagonal(), log_p.where(there, 0.0).sum(1) / there.sum(1)
        loss = -(1 - label_smoothing) * own - label_smoothing * mean
        total = total + loss[valid].sum()
    return total / (2 * valid.sum().clamp(min=1))


def sigmoid(scores, ids, valid, *, log_scale, bias, ignore_above=None):
    rows, columns = masks(scores, ids, valid, ignore_above)
    pairs = torch.eye(len(ids), dtype=torch.bool) & valid[:, None]
    logits = scores * log_scale.exp() + bias
    there = (rows & columns) | pairs
    losses = F.softplus(torch.where(pairs, -logits, logits), threshold=1e9)
    return losses[there].sum() / valid.sum().clamp(min=1)


def loss_of(kind, settings, numbers, images, captions, ids, valid):
    """Return the loss of (B, D) rows, one image row a pair; ``numbers`` are the learned ones."""
    if kind == "hinge":
        return hinge_loss(images, captions, ids=ids, valid=valid, **settings)
    scores = images @ captions.T
    settings = {key: value for key, value in settings.items() if key not in FIRST}
    if kind == "infonce":
        return infonce(scores, ids, valid, **settings, **numbers)
    if kind == "sigmoid":
        return sigmoid(scores, ids, valid, **settings, **numbers)
    both = {"reduction": "mean"} | settings.get("hinge", {})
    hinge = hinge_loss(images, captions, ids=ids, valid=valid, **both)
    softmax = loss_of("infonce", settings.get("infonce", {}), numbers, images, captions, ids, valid)
    return settings["hinge_weight"] * hinge + settings["infonce_weight"] * softmax


def reference(kind, settings, numbers, images, captions, ids, valid):
    """As `loss_of` of (N, D) images and (N k, D) captions, at each size of the embeddings."""
    settings = dict(settings)
    sizes, weights = (settings.pop(f"matryoshka{name}", None) for name in ("", "_weights"))
    images = images.repeat_interleave(len(captions) // len(images), dim=0)
    if not sizes:
        return loss_of(kind, settings, numbers, images, captions, ids, valid)
    return sum(
        weight
        * loss_of(
            kind, settings, numbers,
            *(F.normalize(side[:, :size], dim=1) for side in (images, captions)), ids, valid,
        )
        for size, weight in zip(sizes, weights or [1.0] * len(sizes), strict=True)
    )  # fmt: skip
