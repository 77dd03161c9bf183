"""Rank 5,000 images and 25,000 captions of width 1,024, in turn with the bare product of both.

Usage: coco_ranks.py [ROUNDS]; prints the median seconds of both, their ratio and the peak of memory
before the first bare product, which holds the whole matrix.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from vse_scale.retrieval.ranks import query_ranks


def most_memory() -> int:
    """Return the peak of this program in bytes; ru_maxrss would begin with what the parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def main(rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5000, 1024, generator=generator)
    captions = torch.randn(25000, 1024, generator=generator)
    owners = torch.arange(25000) // 5
    seconds: dict[str, list[float]] = {"ranks": [], "product": []}
    peak = 0
    for _ in range(rounds):
        began = time.perf_counter()
        query_ranks(images, captions, owners)
        seconds["ranks"].append(time.perf_counter() - began)
        peak = peak or most_memory()
        began = time.perf_counter()
        product = images @ captions.T
        seconds["product"].append(time.perf_counter() - began)
        del product
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["ranks"] / medians["product"]
    print(json.dumps({**medians, "ratio": ratio, "peak_bytes": peak}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
