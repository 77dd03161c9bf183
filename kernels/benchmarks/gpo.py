"""Time gpo_pool against the published formulation: mask, sort, mask, multiply, sum.

    python kernels/benchmarks/gpo.py [--device cuda] [--out kernels/benchmarks/results.csv]

On a GPU "floor" moves the bytes that any implementation must move, with little arithmetic:
inference reads the features, training reads them twice and writes a gradient of their size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measure import arguments, compare
from torch import Tensor

from vse_kernels import gpo_pool

POSITIONS = (36, 64, 100, 196, 256)
COLUMNS = 1024


def published(features: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Pool as the published code: features (B, K, D), mask (B, K, 1), weights (B, K)."""
    masked = features.masked_fill(~mask, -10000)
    ordered = masked.sort(dim=1, descending=True)[0].masked_fill(~mask, 0)
    return (ordered * weights[:, :, None]).sum(1)


def setup(
    samples: int, positions: int, dtype: torch.dtype, device: str
) -> tuple[dict[str, Callable[[], Tensor]], tuple[Tensor, Tensor]]:
    """Return both formulations as calls on the same operands, and the differentiable operands."""
    generator = torch.Generator().manual_seed(positions)
    features = torch.randn(samples, positions, COLUMNS, generator=generator)
    features = features.to(device, dtype).requires_grad_()
    lengths = torch.randint(positions // 2 + 1, positions + 1, (samples,), generator=generator)
    distinct, rows = lengths.unique(return_inverse=True)
    reach = torch.arange(positions)
    table = torch.randn(len(distinct), positions, generator=generator)
    table = table.masked_fill(reach >= distinct[:, None], -torch.inf).softmax(1).to(device)
    table.requires_grad_()
    mask = (reach < lengths[:, None])[:, :, None].to(device)
    lengths, rows = lengths.to(device), rows.to(device)
    pools = {
        "published": lambda: published(features, mask, table[rows].to(dtype)),
        "ours": lambda: gpo_pool(features, lengths, table, rows),
    }
    return pools, (features, table)


def training(
    pool: Callable[[], Tensor], leaves: tuple[Tensor, Tensor]
) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call of the forward and backward pass."""

    def step() -> tuple[Tensor, ...]:
        pooled = pool()
        return torch.autograd.grad(pooled, leaves, torch.ones_like(pooled))

    return step


def main(options: argparse.Namespace) -> None:
    """Time inference and training for every number of positions."""
    on_gpu = options.device.startswith("cuda")
    samples = 2 if options.small else 256 if on_gpu else 64
    for dtype in (torch.bfloat16, torch.float32) if on_gpu else (torch.float32,):
        for positions in (8,) if options.small else POSITIONS:
            pools, leaves = setup(samples, positions, dtype, options.device)
            case = f"{samples}x{positions}x{COLUMNS}"
            shared = {"kernel": "gpo_pool", "case": case, "dtype": dtype, "options": options}
            steps = {name: training(pool, leaves) for name, pool in pools.items()}
            if on_gpu:
                data = leaves[0].detach()
                pools["floor"] = lambda data=data: data.sum()
                steps["floor"] = lambda data=data: (data.sum(), data.clone())
            with torch.no_grad():
                compare(pools, mode="inference", **shared)
            compare(steps, mode="training", **shared)


if __name__ == "__main__":
    main(arguments(__doc__))
