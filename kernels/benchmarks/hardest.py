"""Time hardest_negatives against the bare product of its operands, and the stored matrix.

    python kernels/benchmarks/hardest.py [--device cuda] [--out kernels/benchmarks/results.csv]

"product" is torch.mm alone, the floor; "plain" stores the matrix, masks it and takes both maxima,
if the matrix fits. At a batch of 1,024 it has 4 MB in float32, and avoiding it gains nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measure import arguments, compare
from torch import Tensor

from vse_kernels import all_violations, hardest_negatives

WIDTH = 1024
LARGEST_PLAIN = 32768


def plain(queries: Tensor, candidates: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    """Store the matrix, mask it and take both maxima."""
    scores = (queries @ candidates.T).masked_fill_(ids[:, None] == ids[None], -torch.inf)
    return *scores.max(1), *scores.max(0)


def setup(
    size: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor, dict[str, Callable[[], object]]]:
    """Return the operands and the implementations."""
    generator = torch.Generator(device).manual_seed(0)
    queries, candidates = (
        torch.nn.functional.normalize(
            torch.randn(size, WIDTH, generator=generator, device=device, dtype=dtype)
        )
        for _ in range(2)
    )
    ids = torch.arange(size, device=device)
    implementations: dict[str, Callable[[], object]] = {
        "product": lambda: torch.mm(queries, candidates.T),
        "ours": lambda: hardest_negatives(queries, candidates, ids, ids),
    }
    if size <= LARGEST_PLAIN:
        implementations["plain"] = lambda: plain(queries, candidates, ids)
    return queries, candidates, ids, implementations


def violations_implementations(
    queries: Tensor, candidates: Tensor, ids: Tensor
) -> dict[str, Callable[[], object]]:
    """Return the all-violations loss with gradient: autograd on the stored matrix, and ours."""

    def by_autograd() -> object:
        left, right = (x.detach().requires_grad_() for x in (queries, candidates))
        scores = left @ right.T
        positive = scores.diagonal()
        apart = ids[:, None] != ids[None]
        rows = (0.2 + scores - positive[:, None]).clamp_min(0) * apart
        columns = (0.2 + scores - positive[None]).clamp_min(0) * apart
        return torch.autograd.grad((rows + columns).sum(), (left, right))

    def ours(impl: str = "auto") -> object:
        positive = (queries * candidates).sum(1)
        return all_violations(
            queries, candidates, ids, ids, positive, positive, 0.2, True, impl=impl
        )

    in_tiles = {"tiles": lambda: ours("torch")} if queries.is_cuda else {}
    return {"plain": by_autograd, **in_tiles, "ours": ours}


def main(options: argparse.Namespace) -> None:
    """Time growing batches; the matrix of the last one on a GPU would take 2 TB."""
    on_gpu = options.device.startswith("cuda")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    sizes = (64,) if options.small else (1024, 8192, 65536) if on_gpu else (1024, 4096)
    for size in sizes:
        queries, candidates, ids, implementations = setup(size, dtype, options.device)
        compare(
            implementations, kernel="hardest_negatives", case=f"{size}x{size}x{WIDTH}", dtype=dtype,
            mode="forward", options=options,
        )  # fmt: skip
        if size <= 8192:
            for kind in dict.fromkeys((torch.float32, dtype)):
                compare(
                    violations_implementations(queries.to(kind), candidates.to(kind), ids),
                    kernel="all_violations", case=f"{size}x{size}x{WIDTH}", dtype=kind,
                    mode="training", options=options,
                )  # fmt: skip
    if on_gpu and not options.small:
        options.repeats = 1
        *_, implementations = setup(1 << 20, dtype, options.device)
        compare(
            {"ours": implementations["ours"]}, kernel="hardest_negatives",
            case=f"{1 << 20}x{1 << 20}x{WIDTH}", dtype=dtype, mode="forward", options=options,
        )  # fmt: skip


if __name__ == "__main__":
    main(arguments(__doc__))
