"""Turns are taken one at a time; failures are told; nothing is left running."""

from __future__ import annotations

import time

import psutil
import pytest
from players import hungry, killed, mistaken, refused, restless, sleeping_child, worker

from vse_scale.bench.comparison import Implementation, fastest, powers_of_two, take_turns
from vse_scale.errors import DatasetError


def test_rates_and_shares_are_of_the_turns() -> None:
    implementations = [
        Implementation("slow", worker, {"seconds": 0.02}),
        Implementation("fast", worker, {"seconds": 0.01, "units": 2.0}),
    ]
    found = take_turns(implementations, 3, small=False)
    assert list(found) == ["slow", "fast"]
    assert found["slow"].values == [50.0] * 3
    assert found["fast"].values == [200.0] * 3
    assert found["slow"].shares == {"data": 0.25}
    assert len(take_turns(implementations[:1], 1, small=True)["slow"].values) == 1


def test_the_fastest_number_is_found() -> None:
    given = {
        count: Implementation(
            f"{count} threads", worker, {"seconds": 0.01, "units": float(count == 2)}
        )
        for count in powers_of_two(7)
    }
    assert list(given) == [1, 2, 4]
    assert fastest(given) == 2


def test_nobody_goes_on_in_anothers_turn() -> None:
    others = Implementation("others", worker, {"seconds": 1.0})
    found = take_turns([Implementation("restless", restless, {}), others], 3, small=False)
    # 100 counts a second, had it not been stopped for a second each time.
    assert max(found["restless"].values) < 40


def test_memory_is_of_the_implementation_alone_and_of_its_children() -> None:
    implementations = [Implementation(str(size), hungry, {"mebibytes": size}) for size in (1, 200)]
    peaks = {
        name: r.peak_bytes >> 20 for name, r in take_turns(implementations, 1, small=True).items()
    }
    assert 150 < peaks["200"] - peaks["1"] < 500


def test_what_a_user_can_mend_is_raised_as_it_is() -> None:
    with pytest.raises(DatasetError, match="photo 7 is broken"):
        take_turns([Implementation("refused", refused, {})], 2, small=False)


def test_other_failures_name_the_implementation_and_the_place() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)mistaken:.*players.*a mistake of the code"):
        take_turns([Implementation("mistaken", mistaken, {})], 2, small=False)
    with pytest.raises(RuntimeError, match="killed: its process ended with code 3"):
        take_turns([Implementation("killed", killed, {})], 2, small=False)


def test_workers_of_a_implementation_end_with_it() -> None:
    found = take_turns([Implementation("parent", sleeping_child, {})], 1, small=True)
    child = int(found["parent"].values[0])
    for _ in range(50):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie":
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")
