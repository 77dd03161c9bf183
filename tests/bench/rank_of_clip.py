"""One rank: a peer's loss and gradient of its part of a batch.

Usage: rank_of_clip.py FOLDER NAME
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from vse_scale.bench.traffic import LOSSES

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
images, captions = (
    side.chunk(ranks)[rank].clone().requires_grad_() for side in torch.load(folder / "batch.pt")
)
loss = LOSSES[sys.argv[2]](images, captions, torch.arange(len(images)))
loss.backward()
torch.save((loss.detach(), images.grad, captions.grad), folder / f"{rank}.pt")
dist.barrier()  # a rank that leaves while another still sends may be aborted by gloo
dist.destroy_process_group()
