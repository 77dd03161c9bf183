"""One rank of an encoding by several processes; run by test_encode.py.

Usage: encode_ranks.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from encode_fakes import FakeDataset, FakeTokenizer, make_model, read_images

from vse_scale.retrieval import encode

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    with mock.patch.object(encode, "image_batches", read_images):
        embeddings = encode.encode_split(
            make_model(),
            FakeTokenizer(),
            FakeDataset(images=21),
            batch=4,
            device="cpu",
            threads=1,
            rank=rank,
            ranks=ranks,
        )
    torch.save(vars(embeddings), Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()
