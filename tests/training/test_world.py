"""Joining leaves nothing behind; processes share rows out, gather, reduce and broadcast."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from vse_scale.errors import LaunchError
from vse_scale.world import join
from vse_scale.world.place import Place
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
        timeout=300,
    )
    assert joined.returncode == 0, joined.stderr[-2000:]
    assert joined.stdout == "joined\n"
    assert not list(tmp_path.iterdir())
    assert set(shared.glob("deepspeed_*")) <= before


@pytest.mark.parametrize(
    ("nccl", "gloo", "taken"),
    [
        ("lo", None, "lo"),
        ("=lo", None, "lo"),
        ("lo", "eth7", "eth7"),
        ("^docker", None, None),
        ("ib", None, None),
        (None, None, None),
    ],
)
def test_gloo_takes_the_interface_that_nccl_was_told_of(
    monkeypatch: pytest.MonkeyPatch, nccl: str | None, gloo: str | None, taken: str | None
) -> None:
    """After sgl-project/sglang#3226 and vllm-project/vllm#7074 (gloo on the loopback interface)."""
    for name, value in (("NCCL_SOCKET_IFNAME", nccl), ("GLOO_SOCKET_IFNAME", gloo)):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    join._share_interface()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == taken


def test_a_host_that_no_name_server_knows_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """After Lightning-AI/pytorch-lightning#1542 (the host of rank 0 is not found)."""

    def answer(number: int) -> None:
        def look_up(*_: object) -> None:
            raise socket.gaierror(number, "no")

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    monkeypatch.setattr(os, "environ", {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0",
                                        "MASTER_ADDR": "nde-1", "MASTER_PORT": "3"})  # fmt: skip
    answer(socket.EAI_NONAME)
    with pytest.raises(LaunchError, match="MASTER_ADDR is 'nde-1', which no name server knows"):
        join._settled()
    answer(socket.EAI_AGAIN)  # it may answer when torch asks again
    assert join._settled().ranks == 2


def test_a_machine_with_fewer_gpus_than_ranks_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(LaunchError, match=r"rank 3 is number 3 on its machine, .* 2 GPUs; start"):
        join._device_of(Place(rank=3, ranks=4, local_rank=3))
    assert join._device_of(Place(rank=3, ranks=4, local_rank=1)) == torch.device("cuda", 1)
    # A task that was given a GPU of its own.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(os, "environ", {})
    assert join._device_of(Place(rank=3, ranks=4, local_rank=3)) == torch.device("cuda", 0)
    assert os.environ["LOCAL_RANK"] == "0"


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
