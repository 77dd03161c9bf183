"""One rank: computes its share of every case in a file and writes what it got beside it."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from cases import of_rank

from vse_scale.objective import global_hinge_loss


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    results = []
    for case in torch.load(folder / "cases.pt"):
        if "kind" in case:
            results.append(of_rank(case, rank, ranks))
            continue
        images, captions, ids, valid = (value.chunk(ranks)[rank].clone() for value in case["batch"])
        images.requires_grad_()
        captions.requires_grad_()
        found = global_hinge_loss(images, captions, ids=ids, valid=valid, **case["options"])
        found.loss.backward()
        results.append(
            {
                "loss": found.loss.detach(),
                "grads": (images.grad, captions.grad),
                "statistics": (
                    found.violating,
                    found.positive_similarity,
                    found.hardest_similarity,
                ),
                "bytes": found.bytes_sent,
                "seconds": found.communication_seconds,
            }
        )
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
