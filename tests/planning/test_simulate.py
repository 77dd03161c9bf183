"""Simulated runs: closed forms of time, and counts against what real datasets stage.

Stalls at a node's first batch and at each window, and every shard on every node, were reported at
mosaicml/streaming#726, mosaicml/streaming#792 and rom1504/img2dataset#188.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vse_scale.commands.simulate import simulate as command
from vse_scale.config import Config
from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingOptions
from vse_scale.errors import ConfigError
from vse_scale.planning.events import Clock, Links, Process, Signal
from vse_scale.planning.made_shards import ShardList
from vse_scale.planning.simulate import Cluster, Phase, Simulation
from vse_scale.planning.simulated_page import simulate
from vse_scale.planning.staged_nodes import Storage
from vse_shards.build import BuildOptions, build
from vse_shards.demo import make_demo
from vse_shards.sources.jsonl import JsonlSource

SMALL = Path(__file__).parents[1] / "small.yaml"


def configured(folder: Path | str = "made", **data: Any) -> Config:
    keys = {"mode": "pairs", "captions_per_image": 1, "global_batch": 64, **data}
    return Config.load(
        SMALL, ["run.dir=run", f"data.path={folder}", *(f"data.{k}={v}" for k, v in keys.items())]
    )


def ends(links: Links, sizes: list[tuple[int, int]]) -> list[float]:
    """Return when each of several transfers (node, bytes) ends that begin together."""
    clock, found, done = Clock(), [0.0] * len(sizes), Signal()

    def one(number: int) -> Process:
        yield links.transfer(*sizes[number])
        found[number] = clock.now
        if all(found):
            done.fire()

    for number in range(len(sizes)):
        clock.start(one(number))
    clock.run(links, done)
    return found


def test_transfers_of_a_node_share_its_link() -> None:
    # Two share 100 a second until the first has its 100, then the second has all.
    assert ends(Links(2, 100.0), [(0, 100), (0, 200), (1, 500)]) == [2.0, 3.0, 5.0]


def test_a_storage_that_binds_is_shared_by_all() -> None:
    # The node with two gives each 25, which leaves 40 of 90 to the other. From 2 s on both nodes
    # have one transfer and 45 each, and from 4 s on the last has its whole link.
    found = ends(Links(2, 50.0, 90.0), [(0, 50), (0, 140), (1, 220)])
    assert found == pytest.approx([2.0, 4.0, 2.0 + 2.0 + (220 - 80 - 90) / 50])


def run(
    shards: ShardList, storage: Storage, steps: int, nodes: int = 1, step: float = 0.1,
    **data: Any,
) -> tuple[Simulation, Phase]:  # fmt: skip
    simulation = Simulation(configured(**data), shards, Cluster(nodes, 1, storage, step))
    return simulation, simulation.run(0, steps)


ONE_STREAM = {"streams": 1, "shuffle_window": 1, "cache_ahead": 1, "prefetch": 1}


def test_a_slow_link_takes_what_the_bytes_take() -> None:
    """Ten steps of a shard are computed in 1 s, and the shard comes in 3 s: each waits for 2."""
    shards = ShardList.made(20, 640, 1, 300)
    _, phase = run(shards, Storage(100.0), 200, **ONE_STREAM)
    assert phase.stalls[0] == pytest.approx(3.0 * 2, abs=3.0)  # it, and one beside it
    # Two come at once, and each then has half of the link.
    of_two_shards = np.add.reduceat(phase.stalls, range(20, 200, 20))[:-1]
    assert of_two_shards.tolist() == pytest.approx([4.0] * 8)
    total = phase.begins[-1] + 0.1
    assert total == pytest.approx(20 * 3.0 + 1.0, abs=1.0)
    assert phase.counted[0].bytes == pytest.approx(20 * 300, abs=600)


def test_a_fast_link_makes_nobody_wait_after_the_first_batch() -> None:
    shards = ShardList.made(20, 640, 1, 50)
    _, phase = run(shards, Storage(100.0, request=0.25), 200, **ONE_STREAM)
    assert phase.stalls[0] == pytest.approx(0.25 + 2 * 0.5, abs=0.51)
    assert sum(phase.stalls[1:]) == 0.0


@pytest.mark.parametrize("nodes", [1, 2, 8, 64])
def test_nodes_fetch_the_shards_of_their_streams(nodes: int) -> None:
    """Of 256 shards a node of 64 needs its four; the order says which."""
    shards = ShardList.made(256, 64, 1, 10)
    simulation, phase = run(
        shards, Storage(1e9), 256, nodes, streams=64, shuffle_window=128, cache_ahead=0
    )
    for node, counted in enumerate(phase.counted):
        own = simulation.plan.shards_of_epoch(0, rank=node, ranks=nodes)
        later = simulation.plan.shards_of_epoch(1, rank=node, ranks=nodes)
        assert len(own) == 256 // nodes
        assert set(own) <= set(counted.fetched) <= {*own, *later}
        assert counted.most == 10 * len(set(counted.fetched))


def test_a_lost_node_fetches_its_own_shards_again_and_the_others_find_theirs() -> None:
    shards = ShardList.made(64, 64, 1, 10)
    data = {"streams": 4, "shuffle_window": 16, "cache_ahead": 1}
    simulation, before = run(shards, Storage(1000.0), 20, 4, **data)
    after = simulation.run(16, 8, lost=0)
    again = [
        a.fetched[len(b.fetched) :] for a, b in zip(after.counted, before.counted, strict=True)
    ]
    assert set(again[0]) & set(before.counted[0].fetched)
    assert after.counted[0].found == before.counted[0].found
    for node in range(1, 4):
        assert not set(again[node]) & set(before.counted[node].fetched)
        assert after.counted[node].found > before.counted[node].found
    assert after.stalls[0] >= 10 / 1000


def test_a_cache_that_is_too_small_is_refused_and_the_remedy_holds() -> None:
    shards = ShardList.made(64, 64, 1, 10**9)
    data = {"streams": 4, "shuffle_window": 16, "cache_ahead": 1}
    with pytest.raises(ConfigError, match=r"data\.cache_gb is 4, and at .*; raise data\.cache_gb"):
        run(shards, Storage(1e9, limit=4e9), 30, 1, **data)
    _, phase = run(shards, Storage(1e9, limit=40e9), 30, 1, **data)
    assert phase.counted[0].most <= 40e9


@pytest.fixture(scope="module")
def eighteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 18 shards of four images, two captions each."""
    folder = tmp_path_factory.mktemp("simulated")
    make_demo(folder / "source", images=90)
    rows = (folder / "source" / "captions.jsonl").read_text().splitlines()
    kept = [row for row in rows if '"train"' in row][:72]
    (folder / "source" / "kept.jsonl").write_text("\n".join(kept) + "\n")
    source = JsonlSource(str(folder / "source" / "kept.jsonl"), str(folder / "source"))
    build(source, str(folder / "out"), BuildOptions(shard_samples=4))
    return folder / "out"


@pytest.mark.parametrize(
    ("data", "roomy"),
    [
        ({"streams": 4, "shuffle_window": 4, "cache_ahead": 2}, True),
        ({"streams": 2, "shuffle_window": 2, "cache_ahead": 0}, False),
        ({"streams": 1, "shuffle_window": 3, "cache_ahead": 3}, False),
    ],
)
def test_a_real_dataset_stages_the_same_shards(
    eighteen: Path, tmp_path: Path, data: dict[str, Any], roomy: bool
) -> None:
    """One process that reads as the loader does, and waits for what it announced."""
    config = configured(eighteen.as_uri(), global_batch=8, prefetch=1, **data)
    listed = ShardList.of(config.data)
    simulation = Simulation(config, listed, Cluster(1, 1, Storage(1e15), 1.0))
    most = max(listed.shard_bytes) * (18 if roomy else 10)
    options = StagingOptions(str(tmp_path / "cache"), most / 1e9, 0)
    dataset = ShardDataset(eighteen.as_uri(), "train", options)
    plan, steps = simulation.plan, 2 * simulation.plan.steps_per_epoch
    position = (0, 0)
    for _ in range(steps):
        dataset.prepare(*plan.shards(*position, config.data.cache_ahead))
        for image in plan.part(*position, 0, 1).pairs[:, 0].tolist():
            dataset.record(image)
        for future in dataset._cache._futures.values():
            if not future.cancelled():
                future.result(60)
        position = plan.following(*position)
    cluster = Cluster(1, 1, Storage(1e15, limit=float(most)), 1.0)
    # The loader requests batches ahead of the last step: as many fewer are trained.
    ahead = 4
    phase = Simulation(config, listed, cluster).run(0, steps - ahead)
    counts = dataset.staged
    dataset._cache.close()
    # Four threads decide in which order shards were used last, and so which one goes.
    fetched = len(phase.counted[0].fetched)
    assert abs(fetched - counts["fetched_shards"]) <= (0 if roomy else 2)
    assert (fetched == 18) == roomy


def test_the_command_tells_a_page_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {
        "config": SMALL, "nodes": 4, "ranks_per_node": 2, "node_mb_s": 100.0, "step_ms": 100.0,
        "shards": 64, "shard_images": 64, "shard_mb": 10.0, "image_captions": 2, "steps": 30,
        "lose_at": 9,
    }  # fmt: skip
    keys = ["run.dir=run", "run.checkpoint_steps=4", "data.path=made"]
    keys += ["data.streams=8", "data.shuffle_window=16"]
    command(**given, overrides=keys)
    page = capsys.readouterr().out
    assert "4 nodes of 2 ranks, 64 shards of 10 MB" in page
    assert "30 steps from step 8 on, 2 trained again" in page
    assert page.count("s to the first batch") == 2
    command(**given, overrides=keys, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [start["first_step"] for start in told] == [0, 8]
    assert told[1]["shards_found"]["most"] > 0
    keys.append("data.path=[a,b]")
    with pytest.raises(ConfigError, match="--shards makes one dataset"):
        command(**given, overrides=keys)
    command(**given, overrides=[*keys, "data.path=a", "data.weights=null"])


def test_the_figures_of_a_start_are_its_own() -> None:
    shards = ShardList.made(64, 64, 1, 10)
    config = configured(streams=4, shuffle_window=16)
    cluster = Cluster(4, 1, Storage(1000.0), 0.1)
    first, second = simulate(config, shards, cluster, 10, 19, lambda: None).as_json()
    assert first["steps"], second["steps"] == (20, 10)
    assert second["bytes_fetched"]["most"] == 10 * second["shards_fetched"]["most"]
