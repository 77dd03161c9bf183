"""Count the bytes that losses send and hold while real ranks compute them.

Bytes are counted twice. ``ring`` counts each collective as if the ranks formed a ring, which is the
minimum, and NCCL's algorithm. ``sockets`` counts the bytes of this process's TCP connections as
the operating system does, which is what gloo sent.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as collectives
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vse_scale.objective import global_hinge_loss, make_objective

# torch 2.13 renamed them, and warns of the former names.
_gather_with_gradient = (
    getattr(collectives, "all_gather_single_autograd", None)
    or collectives.all_gather_tensor_autograd
)
_gather = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor
_reduce_scatter = (
    getattr(collectives, "reduce_scatter_single", None) or collectives.reduce_scatter_tensor
)
_BYTES_SENT = 200  # offset of tcpi_bytes_sent in the kernel's struct tcp_info
_TEMPERATURE = 0.07  # of CLIP as its training begins

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of a rank's images (n, D), captions (b, D), b / n of each image, and image ids (b,)."""


@dataclass(frozen=True)
class Cost:
    """Cost of one loss and its gradient, on one rank.

    Attributes:
        ring: bytes sent, if all collectives were rings.
        sockets: bytes sent through TCP; 0 with another transport.
        seconds: duration of the forward and backward pass.
        cpu_seconds: of the processor, all threads of the rank's process together.
        peak_bytes: largest rise of torch's memory; 0 if not measured.
    """

    ring: float
    sockets: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int = 0


def ours(images: Tensor, captions: Tensor, ids: Tensor) -> Tensor:
    """Return the hinge loss with the hardest negatives of all ranks."""
    valid = torch.ones_like(ids, dtype=torch.bool)
    return global_hinge_loss(images, captions, ids=ids, valid=valid).loss


def objective(kind: str, **settings: Any) -> Loss:
    """Return a loss over all ranks, as `make_objective` has it."""

    def loss(images: Tensor, captions: Tensor, ids: Tensor) -> Tensor:
        return make_objective(kind, **settings).loss(images, captions, ids=ids)

    return loss


def open_clip(images: Tensor, captions: Tensor, ids: Tensor) -> Tensor:
    """Return CLIP's loss, with open_clip's ``local_loss`` and ``gather_with_grad``.

    Written after ``ClipLoss`` in src/open_clip/loss.py of github.com/mlfoundations/open_clip
    (Ilharco et al., 2021): features of both sides are gathered, and the backward pass sends their
    gradients back; a rank computes the logits of its own rows with all columns. It takes one image
    row per caption.
    """
    images = images.repeat_interleave(len(captions) // len(images), dim=0)
    all_images, all_captions = (
        _gather_with_gradient(side.contiguous(), 0, _world()) for side in (images, captions)
    )
    labels = torch.arange(len(images), device=images.device) + len(images) * dist.get_rank()
    per_image = images @ all_captions.T / _TEMPERATURE
    per_caption = captions @ all_images.T / _TEMPERATURE
    return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_caption, labels)) / 2


def memeff(images: Tensor, captions: Tensor, ids: Tensor) -> Tensor:
    """Return CLIP's loss as memeff computes it; its own kernels run on NVIDIA GPUs alone.

    Written after the formulas of ``DistributedMemoryEfficientCLIPLoss`` of memeff 0.3.1
    (github.com/b0nce/MemoryEfficientCLIP): one side travels to all ranks, scores are made a rank's
    block at a time, twice, and the backward pass sends that side's gradient to its owners.
    """
    images = images.repeat_interleave(len(captions) // len(images), dim=0)
    # Its ranks' losses add up; here their mean is the loss, as open_clip's.
    return _Memeff.apply(images, captions) * dist.get_world_size()  # type: ignore[no-any-return, no-untyped-call]


class _Memeff(torch.autograd.Function):
    """A rank's part of the loss of the global batch, and the gradient of its rows of both sides."""

    @staticmethod
    def forward(context: Any, images: Tensor, captions: Tensor) -> Tensor:
        world, rank, ranks = _world(), dist.get_rank(), dist.get_world_size()
        blocks = _gather(captions, 0, world).chunk(ranks)
        shares = [_exponentials(images, block) for block in blocks]
        rows = torch.stack([share.sum(1) for share in shares]).sum(0)
        # Reduced and gathered, which is how a ring reduces to all.
        columns = torch.cat([share.sum(0) for share in shares])
        columns = _reduce_scatter(columns, "sum", 0, world)
        columns = _gather(columns, 0, world).view(ranks, -1)
        context.save_for_backward(images, captions, rows, columns, *blocks)
        own = (images * captions).sum(1) / _TEMPERATURE - 1 / _TEMPERATURE
        return -(2 * own - rows.log() - columns[rank].log()).sum() / (2 * columns.numel())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        images, captions, rows, columns, *blocks = context.saved_tensors
        pairs = columns.numel()
        of_images, of_columns = torch.zeros_like(images), []
        for block, column in zip(blocks, columns, strict=True):
            share = _exponentials(images, block)
            share = share / rows[:, None] + share / column
            of_images += share @ block
            of_columns.append(share.T @ images)
        summed = torch.cat(of_columns)
        of_captions = _reduce_scatter(summed, "sum", 0, _world())
        scale = gradient / (2 * pairs * _TEMPERATURE)
        return (of_images - 2 * captions) * scale, (of_captions - 2 * images) * scale


def _world() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None
    return world


def _exponentials(images: Tensor, captions: Tensor) -> Tensor:
    return (images @ captions.T / _TEMPERATURE - 1 / _TEMPERATURE).exp()


LOSSES: dict[str, Loss] = {
    "vse_scale": ours,
    "vse_scale, infonce": objective("infonce", temperature=_TEMPERATURE),
    "vse_scale, sigmoid": objective("sigmoid"),
    "vse_scale, hinge+infonce": objective("hinge+infonce"),
    "open_clip": open_clip,
    "memeff": memeff,
}


def run_rank(
    rank: int,
    ranks: int,
    rendezvous: str,
    pairs: int,
    captions_per_image: int,
    dim: int,
    rounds: int,
    results: Any,
) -> None:
    """Compute the losses of one batch in turns on one rank, and put its costs on a queue.

    Args:
        rank: rank of this process.
        ranks: number of ranks.
        rendezvous: path of a file that does not exist yet.
        pairs: b, the pairs of this rank.
        captions_per_image: pairs that share an image.
        dim: D.
        rounds: number of timed rounds, after one that measures memory.
        results: queue of (rank, costs by loss, one for each round).
    """
    on_gpus = torch.cuda.device_count() >= ranks
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    backend = "nccl" if on_gpus else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{rendezvous}", rank=rank, world_size=ranks
    )
    generator = torch.Generator().manual_seed(rank)
    sides = [
        F.normalize(torch.randn(rows, dim, generator=generator), dim=1).to(device)
        for rows in (pairs // captions_per_image, pairs)
    ]
    ids = torch.arange(rank * pairs, (rank + 1) * pairs, device=device) // captions_per_image
    costs: dict[str, list[Cost]] = {name: [] for name in LOSSES}
    for number in range(rounds + 1):
        for name, loss in LOSSES.items():
            images, captions = (side.clone().requires_grad_() for side in sides)

            def both_passes(loss: Loss = loss, inputs: Any = (images, captions, ids)) -> None:
                torch.autograd.backward(loss(*inputs))

            found = _cost(both_passes, device, look=number == 0)
            costs[name].append(found)
    results.put((rank, costs))
    dist.barrier()
    dist.destroy_process_group()


def _cost(call: Callable[[], None], device: torch.device, *, look: bool) -> Cost:
    """Run ``call`` and count its cost; measuring memory (``look``) takes time of its own."""
    dist.barrier()
    sent = _sent_through_sockets()
    began, worked = time.perf_counter(), time.process_time()
    peak, counter = 0, _RingBytes()
    if look:
        with counter:
            peak = _rise(call, device)
    else:
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    sent = _sent_through_sockets() - sent
    return Cost(counter.sent, sent, seconds, worked, peak)


def _rise(call: Callable[[], None], device: torch.device) -> int:
    """Return the largest rise of torch's allocated bytes during ``call``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    return cpu_rise(profiler)


def cpu_rise(profiler: Any) -> int:
    """Return the largest rise of torch's allocated CPU bytes in a `profile`."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return int(most)


class _RingBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes that gathers and reduce-scatters within it would send in a ring.

    The losses communicate by these alone, forward and backward.

    Raises:
        RuntimeError: a loss called another collective, which the sum would otherwise omit.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent = 0.0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        namespace, name = str(operator).split(".")[:2]
        if "c10d" in namespace and not name.startswith(("_wrap", "wait", "barrier")):
            ranks, tensors = dist.get_world_size(), [t for t in tree_leaves(args) if _is_tensor(t)]
            if name in ("_allgather_base_", "all_gather_into_tensor"):
                own = min(tensor.nbytes for tensor in tensors)
                self.sent += own * (ranks - 1)
            elif name == "reduce_scatter_tensor":
                self.sent += tensors[0].nbytes * (ranks - 1) / ranks
            else:
                raise RuntimeError(
                    f"{operator}: is neither a gather nor a reduce-scatter, and a loss called it; "
                    "add what a ring sends for it to _RingBytes"
                )
        return operator(*args, **(kwargs or {}))


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _sent_through_sockets() -> int:
    """Return the bytes that all TCP connections of this process have sent so far."""
    total = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:  # closed in the meantime, or not TCP
            continue
        if len(info) >= _BYTES_SENT + 8:
            total += struct.unpack_from("Q", info, _BYTES_SENT)[0]
    return total
