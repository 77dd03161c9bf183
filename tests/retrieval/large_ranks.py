"""Rank a slice of 1,000,000 captions against 200,000 images from mapped files; print the figures.

Usage: large_ranks.py FOLDER [SLICES]; makes the files there, 4.9 GB, unless they are there. One of
SLICES equal slices of the images is ranked, against all captions and both ways, with no more than
4 GB of memory to be had.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

from vse_scale.retrieval.ranks import query_ranks
from vse_scale.retrieval.similarities import as_rows, open_array
from vse_scale.world.processes import Processes

IMAGES, CAPTIONS, WIDTH = 200_000, 1_000_000, 1024
LIMIT = 4_000_000_000
_BLOCK = 10_000


class Slice(Processes):
    """One process's share, without the others."""

    def across(self, values, operation):
        pass


def make(path: Path, rows: int, seed: int) -> None:
    block = np.random.default_rng(seed).standard_normal((_BLOCK, WIDTH), dtype=np.float32)
    block /= np.linalg.norm(block, axis=1, keepdims=True)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (rows, WIDTH))
    for start in range(0, rows, _BLOCK):
        file[start : start + _BLOCK] = np.roll(block, start // _BLOCK, axis=1)
    file.flush()


def status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    slices = int(sys.argv[2]) if len(sys.argv) > 2 else IMAGES // 1000
    for name, rows, seed in (("images", IMAGES, 0), ("captions", CAPTIONS, 1)):
        if not (folder / f"{name}.npy").exists():
            make(folder / f"{name}.npy", rows, seed)
    # Data beyond the limit cannot be allocated; pages of the mapped files are the kernel's cache.
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    images, captions = (as_rows(open_array(folder / f"{n}.npy")) for n in ("images", "captions"))
    owners = torch.arange(CAPTIONS) * IMAGES // CAPTIONS
    began = time.perf_counter()
    query_ranks(images, captions, owners, Slice(0, slices))
    seconds = time.perf_counter() - began
    print(json.dumps({
        "seconds": seconds, "hours_in_all": seconds * slices / 3600,
        "data_bytes": status("VmData"),
        "threads": torch.get_num_threads(),
    }))  # fmt: skip
