"""Time the losses of InfoNCE and sigmoid with their gradients against autograd and torch's tiles.

    python kernels/benchmarks/contrastive.py [--device cuda] [--out kernels/benchmarks/results.csv]

"plain" is autograd over the stored matrix, "tiles" the same functions in torch; on a GPU a batch of
65,536, whose matrix takes 16 GiB in float32 and some copies, is timed by ours alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from hardest import WIDTH, setup
from measure import arguments, compare
from torch import Tensor
from torch.nn import functional as F

from vse_kernels import sigmoid_weights, softmax_sums, softmax_weights

SCALE, BIAS = 14.3, -10.0
LARGEST_PLAIN = 8192
ON_CPU = {"plain": "plain", "ours": "auto"}


def infonce(queries: Tensor, candidates: Tensor, ids: Tensor, impl: str) -> Callable[[], object]:
    """Return both softmaxes' loss with gradient, by "plain" autograd or an implementation."""
    targets = torch.arange(len(ids), device=ids.device)

    def plain() -> object:
        left, right = (side.detach().requires_grad_() for side in (queries, candidates))
        logits = SCALE * (left @ right.T)
        loss = F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)
        return torch.autograd.grad(loss, (left, right))

    def ours() -> object:
        sums = softmax_sums(queries, candidates, ids, ids, SCALE, impl=impl)
        own = (queries * candidates).sum(1) * SCALE
        by_row, by_column = (
            -torch.logaddexp(own, top * SCALE + total.log()) for top, total in (sums[:2], sums[2:])
        )
        return softmax_weights(queries, candidates, ids, ids, SCALE, by_row, by_column, impl=impl)

    return plain if impl == "plain" else ours


def sigmoid(queries: Tensor, candidates: Tensor, ids: Tensor, impl: str) -> Callable[[], object]:
    """Return the loss of every negative with gradient, likewise."""
    same = ids[:, None] == ids if impl == "plain" else None

    def plain() -> object:
        left, right = (side.detach().requires_grad_() for side in (queries, candidates))
        loss = F.softplus(SCALE * (left @ right.T) + BIAS).masked_fill(same, 0.0).sum()
        return torch.autograd.grad(loss, (left, right))

    def ours() -> object:
        return sigmoid_weights(queries, candidates, ids, ids, SCALE, BIAS, impl=impl)

    return plain if impl == "plain" else ours


def main(options: argparse.Namespace) -> None:
    """Time growing batches; on a GPU in bfloat16, and in float32 as training gives them."""
    on_gpu = options.device.startswith("cuda")
    sizes = (64,) if options.small else (1024, 8192, 65536) if on_gpu else (1024, 4096)
    for size in sizes:
        names = {"plain": "plain", "tiles": "torch", "ours": "auto"} if on_gpu else ON_CPU
        if size > LARGEST_PLAIN:
            names = {"ours": "auto"}
        for dtype in (torch.bfloat16, torch.float32) if on_gpu else (torch.float32,):
            given = setup(size, dtype, options.device)[:3]
            for loss in (infonce, sigmoid):
                compare(
                    {name: loss(*given, impl) for name, impl in names.items()},
                    kernel=loss.__name__, case=f"{size}x{size}x{WIDTH}", dtype=dtype,
                    mode="training", options=options,
                )  # fmt: skip


if __name__ == "__main__":
    main(arguments(__doc__))
