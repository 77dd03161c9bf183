"""The hinge loss of VSE++ and VSE-infinity on one process, written as its definition.

Faghri et al., "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", BMVC 2018,
equations 4 (all violations) and 6 (the hardest negative).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Mode = Literal["all", "hardest"]
Reduction = Literal["sum", "mean"]


def check_choices(mode: str, reduction: str) -> None:
    """Raise ValueError where ``mode`` or ``reduction`` is unknown."""
    if mode not in ("all", "hardest"):
        raise ValueError(f'mode is "{mode}"; it must be "all" or "hardest"')
    if reduction not in ("sum", "mean"):
        raise ValueError(f'reduction is "{reduction}"; it must be "sum" or "mean"')


def hinge_loss(
    images: Tensor,
    captions: Tensor,
    *,
    margin: float = 0.2,
    mode: Mode = "all",
    reduction: Reduction = "sum",
    ids: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Sum max(0, margin + s(i, c') - s(i, c)) over both directions, s the dot product.

    Args:
        images: (B, D) unit rows, one per caption: repeat an image's where it has several.
        captions: (B, D) unit rows.
        margin: by how much a pair should beat a negative.
        mode: "all" sums over every negative, "hardest" over the most similar one of each image
            and of each caption (the one with the lowest index among equals).
        reduction: "mean" divides the sum by the number of valid pairs.
        ids: (B,) integers; pairs with equal ids are never each other's negatives. None: all differ.
        valid: (B,) bool; what is False is padding and counts neither as a pair nor as a negative.

    Returns:
        A scalar, differentiable in both embeddings.

    Raises:
        ValueError: shapes disagree, or ``mode`` or ``reduction`` is unknown.
    """
    check_choices(mode, reduction)
    if images.shape != captions.shape or images.dim() != 2:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, captions {tuple(captions.shape)}; "
            "both must be (B, D), one image row per caption"
        )
    if ids is None:
        ids = torch.arange(len(images), device=images.device)
    if valid is None:
        valid = torch.ones_like(ids, dtype=torch.bool)
    scores = images @ captions.T
    positive = scores.diagonal()
    negative = (ids[:, None] != ids) & valid[:, None] & valid
    total = scores.new_zeros(())
    for by_anchor, allowed in ((scores, negative), (scores.T, negative.T)):
        violation = F.relu(margin + by_anchor - positive[:, None]).masked_fill(~allowed, 0.0)
        if mode == "hardest":
            # Chosen by score: the hinge makes equals of all that do not violate.
            hardest = by_anchor.masked_fill(~allowed, -torch.inf).argmax(1, keepdim=True)
            violation = violation.gather(1, hardest)
        total = total + violation.sum()
    return total / valid.sum().clamp(min=1) if reduction == "mean" else total
