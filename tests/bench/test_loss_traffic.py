"""The loss's traffic and memory against open_clip's and memeff's, by real ranks."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.nn import functional as F

from vse_scale.bench.loss import compare
from vse_scale.bench.traffic import _RingBytes
from vse_scale.objective import make_objective
from vse_scale.planning.traffic import Workload, loss_bytes

OTHERS = ("infonce", "sigmoid", "hinge+infonce")


@pytest.mark.slow
@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("ranks", [2, 4])
def test_it_sends_half_of_open_clips_and_no_more_than_memeffs(ranks: int, shared: int) -> None:
    pairs, dim = 64, 1024
    costs = compare(ranks, pairs=pairs, dim=dim, rounds=2, captions_per_image=shared)
    ours, theirs = costs["vse_scale"], costs["open_clip"]
    planned, *others = (
        loss_bytes(
            Workload(
                parameters=0, trained=0, moments=2, autocast_parameters=0, gathered_parameters=0,
                global_batch=pairs * ranks,
                captions_per_image=shared, embed_dim=dim, objective=make_objective(kind),
            ),
            ranks,
        )
        for kind in ("hinge", *OTHERS)
    )  # fmt: skip
    assert ours[0].ring == planned
    for kind, expected in zip(OTHERS, others, strict=True):
        found = costs[f"vse_scale, {kind}"]
        assert found[0].ring == expected
        assert all(cost.sockets == pytest.approx(expected, rel=0.02) for cost in found[1:])
    # Both sides forward, and their gradients back.
    assert theirs[0].ring == 4 * pairs * dim * 4 * (ranks - 1)
    # Where their gradients come back as well as they can, ours is half of theirs, and less where an
    # image serves several pairs; but for ids and choices, 24 bytes a pair. On gloo their gradients
    # come back as an all-reduce, and ours is a third.
    beside = (ranks - 1) * (24 * pairs + 40)
    assert ours[0].ring - beside <= 0.25 * (1 + 1 / shared) * theirs[0].ring
    assert ours[0].ring <= (0.502 if shared == 1 else 0.5) * theirs[0].ring
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert mine.sockets == pytest.approx(planned, rel=0.02)
        assert mine.sockets <= 0.5 * other.sockets
    # memeff's sends one side, its gradient, and two numbers a pair: as much as ours, unless images
    # are shared; on gloo, where that gradient comes back as an all-reduce, half as much again.
    peer = costs["memeff"]
    assert peer[0].ring == (ranks - 1) * 8 * pairs * (dim + 1)
    for name in ("vse_scale", "vse_scale, infonce", "vse_scale, sigmoid"):
        assert costs[name][0].ring <= (1.01 if shared == 1 else 0.76) * peer[0].ring
        for mine, other in zip(costs[name][1:], peer[1:], strict=True):
            assert mine.sockets <= (0.68 if shared == 1 else 0.51) * other.sockets


@pytest.mark.slow
def test_4096_pairs_take_no_more_of_the_processor_than_theirs_and_hold_no_scores() -> None:
    costs = compare(2, pairs=2048, dim=256, rounds=3)
    assert costs["vse_scale"][0].peak_bytes < 0.5 * costs["open_clip"][0].peak_bytes
    # Of InfoNCE, exponentials of 64 MB are kept.
    assert costs["vse_scale, infonce"][0].peak_bytes < 100 << 20
    for peer in ("open_clip", "memeff"):
        quotients = [
            mine.cpu_seconds / other.cpu_seconds
            for mine, other in zip(costs["vse_scale, infonce"][1:], costs[peer][1:], strict=True)
        ]
        assert statistics.median(quotients) <= 1, (peer, quotients)


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["open_clip", "memeff"])
def test_the_peer_is_clips_loss(peer: str, tmp_path: Path) -> None:
    """The mean over ranks is the loss of the whole batch, and so is the mean gradient."""
    sides = F.normalize(torch.randn(2, 8, 16), dim=2)
    torch.save(sides, tmp_path / "batch.pt")
    run_ranks(2, Path(__file__).with_name("rank_of_clip.py"), tmp_path, peer)
    losses, *gradients = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)), strict=True)
    images, captions = (side.requires_grad_() for side in sides.unbind())
    expected = clip(images, captions)
    torch.testing.assert_close(sum(losses) / 2, expected.detach())
    for found, whole in zip(
        gradients, torch.autograd.grad(expected, (images, captions)), strict=True
    ):
        torch.testing.assert_close(torch.cat(found) / 2, whole)


def clip(images: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """Radford et al., 2021, figure 3."""
    logits = images @ captions.T / 0.07
    diagonal = logits.diagonal()
    return ((logits.logsumexp(1) - diagonal).mean() + (logits.logsumexp(0) - diagonal).mean()) / 2


def test_a_collective_that_it_cannot_count_is_not_left_out(tmp_path: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    try:
        with (
            pytest.raises(RuntimeError, match="neither a gather nor a reduce-scatter"),
            _RingBytes(),
        ):
            dist.all_reduce(torch.ones(2))
    finally:
        dist.destroy_process_group()
