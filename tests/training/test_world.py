"""Joining leaves nothing behind; processes share rows out, gather, reduce and broadcast."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from vse_scale.world.processes import ALONE, World

JOIN = "from vse_scale.world.join import join_world; join_world(20); print('joined')"


def test_joining_compiles_nothing_and_leaves_no_shared_memory(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    before = set(shared.glob("deepspeed_*"))
    joined = subprocess.run(
        [sys.executable, "-c", JOIN],
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert joined.returncode == 0, joined.stderr[-2000:]
    assert joined.stdout == "joined\n"
    assert not list(tmp_path.iterdir())
    assert set(shared.glob("deepspeed_*")) <= before


MEET = """
import torch
from vse_scale.world.gather import Exchange
from vse_scale.world.join import joined
with joined() as world:
    assert (world.rank, world.ranks, world.device.type) == (world.share[0], 3, "cpu")
    own = torch.arange(2.0) + 10 * world.rank
    everyone = torch.tensor([0.0, 1.0, 10.0, 11.0, 20.0, 21.0])
    assert torch.equal(world.gather(own), everyone)
    exchange = Exchange(None, own.device)
    assert torch.equal(exchange.gather(own), everyone)
    assert exchange.bytes_sent == 2 * own.nbytes
    assert exchange.seconds() > 0
    for operation, expected in (("sum", [30.0, 33.0]), ("max", [20.0, 21.0])):
        values = own.clone()
        world.across(values, operation)
        assert values.tolist() == expected, (operation, values)
    values = own.clone()
    world.broadcast(values, source=1)
    assert values.tolist() == [10.0, 11.0]
    assert world.from_main({"told": world.rank}) == {"told": 0}
    world.barrier()
    print(world.rows(10))
"""


def test_three_processes_meet() -> None:
    said = run_ranks(3, "-c", MEET)
    assert [rank.out for rank in said] == ["(0, 3)\n", "(3, 6)\n", "(6, 10)\n"]


def test_a_world_of_one_has_all_and_talks_to_nobody() -> None:
    values = torch.tensor([3.0, 4.0])
    assert ALONE.main
    assert ALONE.rows(7) == (0, 7)
    assert ALONE.gather(values) is values
    ALONE.across(values, "sum")
    ALONE.broadcast(values)
    assert values.tolist() == [3.0, 4.0]
    assert ALONE.from_main("all") == "all"
    ALONE.barrier()
    assert World.of_group(None, torch.device("cpu")) == ALONE


@pytest.mark.parametrize(("total", "ranks"), [(0, 3), (2, 3), (10, 4), (1000, 7)])
def test_shares_are_contiguous_and_cover_all(total: int, ranks: int) -> None:
    bounds = [World(rank, ranks).rows(total) for rank in range(ranks)]
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == total
    assert max(stop - start for start, stop in bounds) <= -(-total // ranks)
