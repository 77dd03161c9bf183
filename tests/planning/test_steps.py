"""The seconds of a step, as a pure function of a machine's constants."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_traffic import work

from vse_scale.errors import ConfigError
from vse_scale.planning.constants import Collective, Computing, Constants, Network
from vse_scale.planning.steps import efficiency, step_time
from vse_scale.planning.traffic import STAGES, loss_bytes, step_bytes

RING = Collective(hop_seconds=1e-3, bytes_per_second=1e6)


def machine(**changes: Any) -> Constants:
    """A GPU machine of plenty of cores, unless told otherwise."""
    given = {
        "device": "made up", "cuda": True, "cores": 10**6, "memory_bytes": 10**9,
        "ranks_per_host": 8, "parameters": 1000, "tokens": 20,
        "computing": [Computing(ranks=1, fixed_seconds=0.01, pair_seconds=0.001, cores=1.0)],
        "score_seconds": 0.0, "optimizer_seconds": 0.008,
        "image_seconds": 0.0, "image_core_seconds": 0.0,
        "network": Network(all_reduce=RING, all_gather=RING, reduce_scatter=RING),
    }  # fmt: skip
    return Constants(**{**given, **changes})


def test_one_rank_computes_and_updates() -> None:
    step = step_time(work(), machine(), 2, 1)
    assert step.seconds == pytest.approx(
        {
            "computing": 0.01 + 64 * 0.001, "loss": 0, "gradients": 0, "weights": 0,
            "optimizer": 0.008, "waiting": 0,
        }
    )  # fmt: skip
    assert step.binds == "computing"
    assert efficiency(work(), machine(), 2, 1) == 1.0


def test_several_ranks_share_pairs_and_the_update_and_exchange_bytes() -> None:
    step = step_time(work(), machine(score_seconds=1e-6), 2, 4)
    sent = step_bytes(work(), 2, 4)
    assert step.seconds["computing"] == pytest.approx(0.01 + 16 * 0.001 + 16 * 48 * 1e-6)
    assert step.seconds["optimizer"] == pytest.approx(0.002)
    assert step.seconds["loss"] == pytest.approx(loss_bytes(work(), 4) / 1e6 + 3 * 3 * 1e-3)
    # The gradients' ring goes round twice, and so do three small numbers.
    assert step.seconds["gradients"] == pytest.approx(sent["gradients"] / 1e6 + 4 * 6 * 1e-3)
    assert step.seconds["weights"] == pytest.approx(sent["weights"] / 1e6 + 3 * 1e-3)
    assert step_time(work(), machine(), 0, 4).seconds["optimizer"] == pytest.approx(0.008)


def test_more_ranks_than_cores_take_turns() -> None:
    """Four ranks on two cores take twice as long as two of as many pairs each."""
    alone = Computing(ranks=1, fixed_seconds=0.0, pair_seconds=0.001, cores=1.0)
    pair = alone.model_copy(update={"ranks": 2, "pair_seconds": 0.0012})
    given = {
        "cuda": False, "cores": 2, "ranks_per_host": None, "computing": [alone, pair],
        "optimizer_seconds": 0.0,
        "network": Network(
            **dict.fromkeys(
                ("all_reduce", "all_gather", "reduce_scatter"),
                Collective(hop_seconds=0, bytes_per_second=1e15),
            )
        ),
    }  # fmt: skip
    seconds = [
        step_time(work(global_batch=64 * n), machine(**given), 2, n).total for n in (1, 2, 4)
    ]
    assert seconds == pytest.approx([0.064, 0.0768, 2 * 0.0768], rel=1e-6)
    # What decodes on the cores that compute is in their way; on an idle one it is not.
    decoding = machine(**given, image_core_seconds=0.0005)
    assert step_time(work(), decoding, 2, 1).total == pytest.approx(0.064)
    assert step_time(work(), decoding, 2, 2).total == pytest.approx(32 * (0.0012 + 0.0005))


def test_what_binds() -> None:
    slow = Collective(hop_seconds=1.0, bytes_per_second=1e6)
    network = Network(all_reduce=slow, all_gather=slow, reduce_scatter=slow)
    assert step_time(work(), machine(network=network), 2, 4).binds == "network"
    loader = step_time(work(), machine(image_seconds=1.0), 2, 4)
    assert loader.binds == "data"
    assert loader.total == 16.0
    shared = step_time(work(), machine(cores=1, image_core_seconds=1.0), 2, 4)
    assert shared.binds == "data"
    assert shared.total > 4 * 16.0
    # An image that serves two pairs is decoded once.
    halved = step_time(work(captions_per_image=2), machine(image_seconds=1.0), 2, 4)
    assert halved.total == 8.0


def test_a_network_that_nobody_measured_is_asked_for() -> None:
    alone = machine(network=None)
    assert step_time(work(), alone, 2, 1).total > 0
    with pytest.raises(ConfigError, match="bytes_per_second"):
        step_time(work(), alone, 2, 2)


@given(st.sampled_from(STAGES), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_efficiency_falls_with_the_ranks(stage: Any, ranks: int) -> None:
    constants = machine(optimizer_seconds=0.0)
    few, many = (
        efficiency(work(global_batch=8 * n), constants, stage, n) for n in (ranks, 2 * ranks)
    )
    assert many < few <= 1.0
