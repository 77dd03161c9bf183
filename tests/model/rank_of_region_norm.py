"""One rank: its share of a batch through the region head's BatchNorm, forward and backward."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from vse_scale.model.towers.regions import SharedBatchNorm


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    inputs, present, arriving = (v.chunk(ranks)[rank] for v in torch.load(folder / "batch.pt"))
    inputs = inputs.clone().requires_grad_()
    norm = SharedBatchNorm(inputs.shape[2]).double()
    outputs = norm(inputs, present)
    outputs.backward(arriving)
    # A rank's gradient of a parameter is its part: the whole is their sum.
    for parameter in norm.parameters():
        dist.all_reduce(parameter.grad)
    torch.save(
        {
            "outputs": outputs.detach(),
            "to_inputs": inputs.grad,
            "to_parameters": [p.grad for p in norm.parameters()],
            "state": norm.state_dict(),
        },
        folder / f"rank{rank}.pt",
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
