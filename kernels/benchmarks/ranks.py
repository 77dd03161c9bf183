"""Time retrieval_ranks against the bare matrix product, both directions of a COCO 5K evaluation.

python kernels/benchmarks/ranks.py [--device cuda] [--out kernels/benchmarks/results.csv]
"""

from __future__ import annotations

import argparse

import torch
from measure import arguments, compare

from vse_kernels import retrieval_ranks

WIDTH = 1024


def main(options: argparse.Namespace) -> None:
    """Time images to captions, and captions to images."""
    images = 100 if options.small else 5000
    captions = 5 * images
    generator = torch.Generator(options.device).manual_seed(0)
    left, right = (
        torch.nn.functional.normalize(
            torch.randn(size, WIDTH, generator=generator, device=options.device)
        )
        for size in (images, captions)
    )
    owner = torch.arange(captions, device=options.device)
    whole = torch.empty(images, captions, device=options.device)
    ways = {
        "i2t": (left, right, torch.arange(0, captions + 1, 5, device=options.device), owner),
        "t2i": (right, left, torch.arange(captions + 1, device=options.device), owner // 5),
    }
    for mode, operands in ways.items():
        compare(
            {
                "product": lambda: torch.mm(left, right.T, out=whole),
                "ours": lambda operands=operands: retrieval_ranks(*operands),
            },
            kernel="retrieval_ranks", case=f"{images}x{captions}x{WIDTH}", dtype=torch.float32,
            mode=mode, options=options,
        )  # fmt: skip


if __name__ == "__main__":
    main(arguments(__doc__))
