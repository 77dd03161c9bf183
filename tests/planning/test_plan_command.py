"""``vse-scale plan`` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import vse_scale
from test_steps import machine

from vse_scale.config import Config
from vse_scale.errors import ConfigError
from vse_scale.planning.constants import Constants
from vse_scale.planning.measure import concurrent_ranks, sizes_of
from vse_scale.planning.page import Plan
from vse_scale.planning.traffic import Workload, loss_bytes


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


def test_what_does_not_fit_binds(small_run: Path) -> None:
    config = Config.load(small_run)
    constants = of_small_run(config).model_copy(update={"memory_bytes": 10**6})
    assert Plan.of(config, [2], constants).estimates[2][2].binds == "memory"


def test_constants_of_another_model_are_refused(small_run: Path) -> None:
    with pytest.raises(ConfigError, match="1000 parameters"):
        Plan.of(Config.load(small_run), [2], machine())


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
    assert found.network is not None
    assert found.network.all_reduce.bytes_per_second > 1e6
    told = json.loads(done.stdout)
    assert told["2"]["2"]["binds"] in ("computing", "network", "data")
    assert sum(told["2"]["2"]["seconds"].values()) > 0
    assert json.loads(vse_scale(*given, "--constants", path).stdout) == told
