"""The schedule: the published table of (epoch, group, learning rate, trainable)."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from vse_scale.config import Config
from vse_scale.errors import ConfigError
from vse_scale.training.schedule import Schedule
from vse_scale.training.setup import announce
from vse_scale.world.processes import World

STEPS = 10


def schedule(shift: int = 0, **sections: dict[str, object]) -> Schedule:
    raw = {"data": {"path": "x"}, "run": {"dir": "y"}, **sections}
    return Schedule(Config.parse(raw), STEPS, shift)


@pytest.mark.parametrize(
    ("epoch", "rate", "objective", "trained_stages"),
    [
        (0, 5e-4, "all", 0),
        (1, 5e-4, "hardest", None),
        (14, 5e-4, "hardest", None),
        (15, 5e-5, "hardest", None),
        (24, 5e-5, "hardest", None),
    ],
)
def test_published_table(
    epoch: int, rate: float, objective: str, trained_stages: int | None
) -> None:
    for index in (0, STEPS - 1):
        plan = schedule().at(epoch * STEPS + index)
        assert (plan.epoch, plan.index) == (epoch, index)
        assert plan.learning_rates == pytest.approx(
            {"heads": rate, "text": 0.1 * rate, "backbone": 0.01 * rate}, rel=1e-12
        )
        assert plan.objective == objective
        assert plan.trained_stages == trained_stages


def test_the_backbone_thaws_stage_by_stage() -> None:
    plan = schedule(train={"frozen_backbone_epochs": 1, "backbone_warmup_epochs": 2})
    unfrozen = [plan.at(epoch * STEPS).trained_stages for epoch in range(9)]
    assert unfrozen == [0, 1, 1, 2, 2, 3, 3, None, None]


def test_the_loss_is_ramped_during_epoch_1_alone() -> None:
    scales = [schedule().at(step).loss_scale for step in range(3 * STEPS)]
    assert scales[:STEPS] == [1.0] * STEPS
    assert scales[STEPS : 2 * STEPS] == [i / STEPS for i in range(STEPS)]
    assert scales[2 * STEPS :] == [1.0] * STEPS


def test_no_ramp_without_a_warm_up_to_ramp_from() -> None:
    assert schedule(objective={"warmup_epochs": 0}).at(0).loss_scale == 1.0


def test_drops_may_fall_within_an_epoch() -> None:
    plan = schedule(optim={"drop_epochs": [0.5, 1.0], "lr": 1.0})
    rates = [plan.at(step).learning_rates["heads"] for step in (0, 4, 5, 9, 10)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_rates_rise_over_the_first_steps() -> None:
    plan = schedule(optim={"warmup_steps": 4, "lr": 1.0})
    rates = [plan.at(step).learning_rates["heads"] for step in range(6)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_max_steps_ends_a_run_early_and_never_later() -> None:
    assert schedule(train={"epochs": 3}).total_steps == 30
    assert schedule(train={"epochs": 3, "max_steps": 7}).total_steps == 7
    assert schedule(train={"epochs": 3, "max_steps": 70}).total_steps == 30


@pytest.mark.parametrize("length", [{"schedule_epochs": 3}, {"schedule_steps": 30}])
def test_a_cosine_falls_from_the_warm_up_to_its_end(length: dict[str, int]) -> None:
    optim = {"schedule": "cosine", "lr": 2.0, "warmup_steps": 10, "final_factor": 0.1, **length}
    rates = [schedule(optim=optim).at(step).learning_rates["heads"] for step in range(50)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    # Half way between the rate and its end, in the middle of what is left.
    assert rates[20] == pytest.approx(2.0 * 0.55)
    assert rates[15] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + 0.5**0.5) / 2))
    assert rates[30:] == pytest.approx([0.2] * 20)


def test_a_constant_rate_cools_down_in_a_line() -> None:
    optim = {"schedule": "cooldown", "lr": 1.0, "schedule_epochs": 4, "cooldown": 0.25}
    rates = [schedule(optim=optim).at(step).learning_rates["heads"] for step in range(45)]
    assert rates[:31] == [1.0] * 31
    assert rates[30:40] == pytest.approx([1 - i / 10 for i in range(10)])
    assert rates[40:] == [0.0] * 5


def test_more_epochs_leave_the_steps_of_a_cosine_as_they_were() -> None:
    optim = {"schedule": "cosine", "schedule_epochs": 3}
    short, long = (schedule(optim=optim, train={"epochs": epochs}) for epochs in (3, 9))
    assert [short.at(step) for step in range(30)] == [long.at(step) for step in range(30)]


@pytest.mark.parametrize("kind", ["cosine", "cooldown"])
def test_a_length_in_epochs_goes_by_the_place_in_the_epochs(kind: str) -> None:
    """Rows were appended in an epoch, which begins anew: its end is where the rate's is."""
    train = {"epochs": 4}
    epochs = {"schedule": kind, "schedule_epochs": 4}
    plan = schedule(7, optim=epochs, train=train)
    assert plan.total_steps == 33
    unshifted = schedule(optim=epochs, train=train)
    for step in range(33):
        assert plan.at(step).learning_rates == unshifted.at(step + 7).learning_rates
    # A length in steps stays what it is.
    steps = {"schedule": kind, "schedule_steps": 30}
    for step in range(33):
        rates = [schedule(by, optim=steps, train=train).at(step) for by in (0, 7)]
        assert rates[0].learning_rates == rates[1].learning_rates


@pytest.mark.parametrize(
    ("shift", "first", "optim", "epochs", "said"),
    [
        (0, 0, {"schedule_epochs": 10}, 25, "steps 100 to 249 have a learning rate of 0"),
        (0, 120, {"schedule_epochs": 10}, 25, "steps 120 to 249 .* by optim.schedule_epochs"),
        (7, 0, {"schedule_epochs": 10}, 25, "steps 93 to 242 have"),
        (0, 0, {"schedule_steps": 30}, 4, r"steps 30 to 39 .* by optim.schedule_steps; raise it"),
        (7, 0, {"schedule_steps": 30}, 4, "steps 30 to 32 have"),
        (0, 0, {"schedule_epochs": 10}, 10, None),
        (0, 0, {"schedule_epochs": 10, "final_factor": 0.1}, 25, None),
        (0, 0, {"schedule_epochs": 3, "warmup_steps": 30}, 3, "optim.warmup_steps is 30, and"),
        (0, 0, {"schedule_epochs": 2.55}, 4, "steps 26 to 39 have"),
    ],
)
@pytest.mark.parametrize("kind", ["cosine", "cooldown"])
def test_steps_without_a_rate_are_said(
    kind: str, shift: int, first: int, optim: dict[str, object], epochs: int, said: str | None
) -> None:
    plan = schedule(shift, optim={"schedule": kind, **optim}, train={"epochs": epochs})
    doubts = list(plan.doubts(first))
    assert len(doubts) == (said is not None)
    rates = [plan.at(step).learning_rates["heads"] for step in range(first, plan.total_steps)]
    if said is None:
        assert all(rates[:-2])
        return
    assert re.search(said, doubts[0])
    if "a learning rate of 0" in doubts[0]:
        resting = int(doubts[0].split()[1])
        assert next(first + n for n, rate in enumerate(rates) if rate == 0.0) == resting
        # The remedy that it names.
        mended = {"schedule": kind, **optim, "final_factor": 0.1}
        assert not list(schedule(shift, optim=mended, train={"epochs": epochs}).doubts(first))
    assert not list(schedule(train={"epochs": epochs}).doubts(first))


@pytest.mark.parametrize("kind", ["cosine", "cooldown"])
def test_a_start_logs_what_is_doubtful_about_its_rates(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A warm-up beyond the schedule, whose end a cosine then has one step after it."""
    config = Config.parse(
        {
            "data": {"path": "x"}, "run": {"dir": "y"}, "train": {"epochs": 8},
            "optim": {"schedule": kind, "schedule_epochs": 3, "warmup_steps": 50},
        }
    )  # fmt: skip
    plan, dataset = Schedule(config, STEPS), MagicMock()
    with caplog.at_level(logging.WARNING, "vse_scale"):
        announce(config, dataset, SimpleNamespace(steps_per_epoch=STEPS), World(), 0, plan)
    warm_up, rest = (record.getMessage() for record in caplog.records)
    assert warm_up.startswith("optim.warmup_steps is 50, and")
    first = next(step for step in range(80) if not plan.at(step).learning_rates["heads"])
    assert rest.startswith(f"steps {first} to 79 have a learning rate of 0")


@pytest.mark.parametrize(
    ("optim", "said"),
    [
        (
            {"schedule": "cosine", "schedule_steps": 9, "warmup_steps": 9},
            "optim.warmup_steps is 9, and optim.schedule_steps 9",
        ),
        ({"schedule": "cosine"}, "set optim.schedule_epochs, such as to train.epochs"),
        ({"schedule": "cosine", "schedule_epochs": 3, "schedule_steps": 9}, "needs one length"),
        ({"schedule_epochs": 3}, "take it out, or set optim.schedule=cosine"),
    ],
)
def test_a_schedule_has_one_length(optim: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        schedule(optim=optim)
