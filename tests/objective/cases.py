"""Drawn cases of every objective, and what a rank makes of its share of one."""

from __future__ import annotations

import random
from typing import Any

import dense
import torch
from torch.nn import functional as F

from vse_scale.objective import make_objective

DIM = 8


def drawn_case(seed: int, ranks: int | None = None, kind: str | None = None) -> dict[str, Any]:
    """Return a case: objective, settings, ranks (drawn too, unless given), and a global batch.

    There are equal ids, copied rows and padding in it.
    """
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    kind = kind or draw.choice(["hinge", "infonce", "sigmoid", "hinge+infonce"])
    ranks, k = ranks or draw.randint(1, 8), draw.choice([1, 1, 2, 3])
    images = ranks * draw.randint(1, 5)
    rows = [
        F.normalize(torch.randn(n, DIM, generator=generator, dtype=torch.float64), dim=1)
        for n in (images, images * k)
    ]
    ids = torch.randint(0, max(2, 2 * images), (images,), generator=generator)
    ids = ids.repeat_interleave(k)
    for side in rows:  # copies: ties
        if len(side) > 2 and draw.random() < 0.5:
            side[draw.randrange(len(side))] = side[draw.randrange(len(side))].clone()
    valid = torch.rand(images * k, generator=generator) > draw.choice([0.0, 0.2, 0.5])
    return {
        "kind": kind, "settings": drawn_settings(kind, draw), "ranks": ranks,
        "batch": (*rows, ids, valid),
    }  # fmt: skip


def drawn_settings(kind: str, draw: random.Random) -> dict[str, Any]:
    above = {"ignore_above": draw.choice([0.05, 0.3])} if draw.random() < 0.3 else {}
    hinge = {"margin": draw.uniform(0.05, 0.5), "reduction": draw.choice(["sum", "mean"])} | above
    hinge["mode"] = draw.choice(["all", "hardest", "semi-hard"])
    infonce = {"temperature": draw.choice([0.004, 0.02, 0.07, 0.5])} | above
    if draw.random() < 0.3:
        infonce["label_smoothing"] = draw.choice([0.1, 0.3])
    settings: dict[str, Any] = {
        "hinge": hinge,
        "infonce": infonce,
        "sigmoid": {"scale": draw.choice([1.0, 10.0, 60.0]), "bias": draw.choice([-10.0, 0.5])}
        | above,
        "hinge+infonce": {
            "hinge": hinge, "infonce": infonce, "hinge_weight": draw.uniform(0.1, 2),
            "infonce_weight": draw.uniform(0.1, 2),
        },
    }[kind]  # fmt: skip
    if draw.random() < 0.25:
        settings = settings | {"matryoshka": [3, DIM]}
        if draw.random() < 0.5:
            settings["matryoshka_weights"] = [0.3, 1.4]
    return settings


def of_rank(case: dict[str, Any], rank: int, ranks: int) -> dict[str, Any]:
    """Return what a rank gets of its share: loss, gradients, bytes and figures."""
    images, captions, ids, valid = (rows.chunk(ranks)[rank].clone() for rows in case["batch"])
    images.requires_grad_()
    captions.requires_grad_()
    objective = make_objective(case["kind"], **case["settings"])
    found = objective.compute(images, captions, ids=ids, valid=valid, phase=objective.final_phase)
    found.loss.backward()
    return {
        "loss": found.loss.detach(),
        "grads": (images.grad, captions.grad),
        "numbers": {name: number.detach() for name, number in objective.learned.items()},
        "learned": dict(found.learned),
        "bytes": found.bytes_sent,
        "planned": objective.gathered_bytes(
            objective.final_phase, images=len(images), captions=len(captions),
            # In float64 an entry takes two.
            embed_dim=2 * DIM,
        ),
        "statistics": found.statistics,
    }  # fmt: skip


def check(case: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Hold what the ranks got to the definition's value and gradient, to 1e-10."""
    images, captions, ids, valid = case["batch"]
    rows = [side.clone().requires_grad_() for side in (images, captions)]
    first = results[0]
    numbers = {name: value.clone().requires_grad_() for name, value in first["numbers"].items()}
    expected = dense.reference(case["kind"], case["settings"], numbers, *rows, ids, valid)
    inputs = [*rows, *numbers.values()]
    gradients = torch.autograd.grad(expected, inputs, allow_unused=True)
    gradients = [
        torch.zeros_like(value) if gradient is None else gradient
        for gradient, value in zip(gradients, inputs, strict=True)
    ]
    for result in results:
        # The same bits everywhere, so that ranks cannot part.
        assert torch.equal(result["loss"], first["loss"])
        assert result["statistics"] == first["statistics"]
        assert result["learned"] == first["learned"]
        assert abs(result["loss"] - expected.detach()) < 1e-10
        assert result["bytes"] == (len(results) - 1) * sum(result["planned"])
    for side, gradient in enumerate(gradients[:2]):
        pair = torch.cat([result["grads"][side] for result in results]), gradient
        if "hinge" in case["kind"]:
            pair = tuple(summed_over_copies(rows[side].detach(), one) for one in pair)
        torch.testing.assert_close(*pair, rtol=0, atol=1e-10)
    for name, gradient in zip(numbers, gradients[2:], strict=True):
        torch.testing.assert_close(first["learned"][name], gradient, rtol=1e-10, atol=1e-10)


def summed_over_copies(rows: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Add up the gradients of equal ``rows``: which of them is the hardest, rounding decides."""
    found, places = torch.unique(rows, dim=0, return_inverse=True)
    return torch.zeros_like(found).index_add_(0, places, gradient)
