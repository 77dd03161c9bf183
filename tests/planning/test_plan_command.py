"""``vse-scale plan`` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import vse_scale
from test_steps import machine

from vse_scale.config import Config
from vse_scale.errors import ConfigError
from vse_scale.model.blueprint import blueprint
from vse_scale.planning.constants import Constants
from vse_scale.planning.made_shards import ShardList
from vse_scale.planning.measure import concurrent_ranks, sizes_of
from vse_scale.planning.page import Plan
from vse_scale.planning.traffic import Workload, loss_bytes
from vse_scale.training.checkpoint import DiskUse
from vse_scale.training.setup import make_plan


def of_small_run(config: Config) -> Constants:
    return machine(parameters=Workload.of(config, bfloat16=True).parameters)


def test_the_page_has_a_table_for_each_number_of_ranks(small_run: Path) -> None:
    config = Config.load(small_run)
    bare = Plan.of(config, [2, 8], None).text()
    assert "8 ranks, 2 pairs each" in bare
    assert "activations" in bare
    assert "binds" not in bare
    full = Plan.of(config, [2, 8], of_small_run(config)).text()
    assert full.count("what binds") == full.count("efficiency") == 2


def test_a_node_reads_the_shards_of_its_streams(small_run: Path) -> None:
    """Shards, bytes and bandwidth of a node by the order; what the storage cannot give binds."""
    config = Config.load(small_run, ["data.streams=2", "data.shuffle_window=2"])
    remote = config.data.model_copy(update={"path": Path(config.data.folders[0]).as_uri()})
    config = config.model_copy(update={"data": remote})
    sizes = ShardList.of(config.data).shard_bytes
    rates = {
        "ranks_per_host": 1, "storage_bytes_per_second": 1000.0, "write_bytes_per_second": 1e6,
        "copy_bytes_per_second": 1e7, "start_seconds": 9.0,
    }  # fmt: skip
    constants = of_small_run(config).model_copy(update=rates)
    plan = Plan.of(config, [2], constants)
    found = plan.estimates[2][2]
    order = make_plan(config, ShardList.of(config.data))
    read = [
        {
            n
            for step in range(order.steps_per_epoch)
            for n in order.shards(0, step, rank=r, ranks=2)[0]
        }
        for r in range(2)
    ]
    assert found.reading is not None
    assert found.step is not None
    assert found.reading.shards == max(map(len, read)) < len(sizes)
    assert found.reading.bytes == max(sum(sizes[n] for n in some) for some in read)
    assert found.binds == "storage"
    assert found.step.total == found.reading.bytes / order.steps_per_epoch / 1000
    assert found.staging == pytest.approx(1000)
    disk = DiskUse.of(blueprint(config)[0], config).checkpoint
    assert found.write == pytest.approx(disk / 1e6, rel=0.01)  # buffers are not counted
    assert found.start == 9.0 + found.reading.first / 1000
    page = plan.text()
    for line in (
        "2 streams, 1 ranks a node, staged on each",
        "MB/s staged on a node",
        "s of start-up",
    ):
        assert line in page
    local = Plan.of(Config.load(small_run), [2], constants).estimates[2][2]
    assert local.binds != "storage"
    assert (local.start, local.staging) == (9.0, 0.0)


def test_a_dataset_that_is_not_there_is_said_and_all_else_is_planned(small_run: Path) -> None:
    page = Plan.of(Config.load(small_run, ["data.path=no/such"]), [2], None).text()
    assert "shards are not planned: no/such: no such folder" in page
    assert "simulate --shards N" in page
    assert "GB checkpoint on disk" in page


def test_what_does_not_fit_binds(small_run: Path) -> None:
    config = Config.load(small_run)
    constants = of_small_run(config).model_copy(update={"memory_bytes": 10**6})
    assert Plan.of(config, [2], constants).estimates[2][2].binds == "memory"


def test_constants_of_another_model_are_refused(small_run: Path) -> None:
    with pytest.raises(ConfigError, match="1000 parameters"):
        Plan.of(Config.load(small_run), [2], machine())


def test_constants_of_a_model_of_which_more_trains_are_refused(small_run: Path) -> None:
    config = Config.load(small_run, ["model.image.frozen=true"])
    assert "million of which train" in Plan.of(config, [2], None).text()
    with pytest.raises(ConfigError, match="of which train; measure this one"):
        Plan.of(config, [2], of_small_run(config))


def test_constants_come_back_as_they_were_saved(tmp_path: Path) -> None:
    machine().save(tmp_path / "constants.json")
    assert Constants.load(tmp_path / "constants.json") == machine()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "--measure FILE"), ("{", "JSON"), ("{}", "device"), ('{"device": 1}', "string")],
)
def test_wrong_constants_are_named(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "constants.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        Constants.load(path)
    assert said in str(caught.value)


def test_the_sizes_that_are_measured(small_run: Path) -> None:
    config = Config.load(small_run)  # 16 pairs, two to an image
    assert sizes_of(config, [1, 2, 4]) == [4, 16]
    assert sizes_of(config, [4]) == [2, 4]
    assert sizes_of(config, [8]) == [2]


def test_the_numbers_of_concurrent_ranks_that_are_measured() -> None:
    assert concurrent_ranks([1, 2, 4], cores=2, gpus=0) == [1, 2, 4]
    assert concurrent_ranks([64], cores=2, gpus=0) == [1, 2, 4]
    assert concurrent_ranks([2], cores=8, gpus=0) == [1, 2]
    assert concurrent_ranks([1], cores=8, gpus=0) == [1]
    assert concurrent_ranks([64], cores=96, gpus=8) == [1, 8]


def test_the_command_prints_json(small_run: Path) -> None:
    given = ("plan", "--config", small_run, "--gpus", "2", "--gpus", "8", "--json")
    told = json.loads(vse_scale(*given).stdout)
    planned = Workload.of(Config.load(small_run), bfloat16=True)
    assert told["8"]["2"]["sent"]["loss"] == loss_bytes(planned, 8)
    assert "seconds" not in told["8"]["2"]


@pytest.mark.slow
def test_it_measures_this_machine_and_plans_with_that(small_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "constants.json"
    given = ("plan", "--config", small_run, "--gpus", "1", "--gpus", "2", "--json")
    done = vse_scale(*given, "--measure", path)
    assert done.returncode == 0, done.stderr
    found = Constants.load(path)
    assert [one.ranks for one in found.computing][:1] == [1]
    assert all(one.pair_seconds > 0 for one in found.computing)
    assert found.image_core_seconds > 0
    assert found.write_bytes_per_second is not None
    assert found.start_seconds is not None
    assert 1 < found.start_seconds < 600
    assert found.network is not None
    assert found.network.all_reduce.bytes_per_second > 1e6
    told = json.loads(done.stdout)
    assert told["2"]["2"]["binds"] in ("computing", "network", "data")
    assert sum(told["2"]["2"]["seconds"].values()) > 0
    assert json.loads(vse_scale(*given, "--constants", path).stdout) == told
