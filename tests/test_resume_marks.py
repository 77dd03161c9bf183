"""The marks of what may change on resume: the published list, walked through all sections."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from vse_scale.config import Config, Section
from vse_scale.config.recipe import apply_override
from vse_scale.config.resume import (
    MAY_CHANGE,
    ON_PURPOSE,
    changeable_keys,
    changes,
    differences,
    flat,
    keys_on_purpose,
)
from vse_scale.errors import CheckpointError, ConfigError
from vse_scale.run.journal import record_changes
from vse_scale.training.run_state import RunState


def test_an_empty_section_is_a_setting_and_no_change_from_none() -> None:
    then = {"a": {"b": {}, "c": 0}, "d": None}
    assert flat(then) == {"a.b": {}, "a.c": 0, "d": None}
    assert differences(then, {"a": {"b": None, "c": 0}, "d": {}}) == {}
    assert differences(then, {"a": {"b": {"x": 1}, "c": 0}}) == {"a.b.x": (None, 1)}


def test_the_marks_are_those_that_runs_rely_on() -> None:
    assert set(changeable_keys(Config)) == {
        "data.path", "data.threads", "data.prefetch",
        "data.cache_dir", "data.cache_gb", "data.cache_ahead",
        "model.init_from",
        "train.epochs", "train.max_steps",
        "eval",
        "engine.zero_stage", "engine.micro_batches", "engine.activation_checkpointing",
        "engine.timeout_seconds",
        "telemetry",
        "run.dir", "run.checkpoint_epochs", "run.checkpoint_steps", "run.keep_checkpoints",
        "run.gather_gb",
        "run.resume_with",
    }  # fmt: skip


class Pixels(Section):
    kind: Literal["pixels"] = "pixels"
    threads: Annotated[int | None, MAY_CHANGE] = None


@dataclass(frozen=True)
class Regions:
    kind: Literal["regions"] = "regions"
    cache: Annotated[str, MAY_CHANGE] = ""


@dataclass(frozen=True)
class Whole:
    image: Annotated[Pixels | Regions, "a note"] = field(default_factory=Regions)
    watch: Annotated[Pixels | None, MAY_CHANGE] = None
    seed: int = 0


def test_dataclasses_and_unions_are_walked() -> None:
    assert list(changeable_keys(Whole)) == ["image.threads", "image.cache", "watch"]


def test_a_marked_section_covers_its_keys_and_no_others() -> None:
    then = {"image": {"kind": "regions", "cache": "a"}, "watch": {"threads": 1}, "seed": 0}
    now = {"image": {"kind": "pixels", "cache": "b"}, "watch": {"threads": 2}, "seed": 0}
    assert changes(then, now, Whole) == ["image.kind was 'regions', is 'pixels'"]
    assert changes({"watchful": 1}, {"watchful": 2}, Whole) == ["watchful was 1, is 2"]


def test_a_run_may_change_rates_and_losses_on_purpose() -> None:
    assert {f"optim.{key}" for key in ("lr", "drop_epochs", "warmup_steps", "clip")} < set(
        changeable_keys(Config, "", ON_PURPOSE)
    )
    given = ["optim.lr=1e-4", "objective.margin=0.1", "train.epochs=9"]
    assert keys_on_purpose(given, Config) == ("optim.lr", "objective.margin", "train.epochs")
    with pytest.raises(ConfigError, match=r"--resume-with data\.global_batch: .* may change data"):
        keys_on_purpose(["data.global_batch=8"], Config)


@pytest.mark.parametrize(
    ("objective", "key", "fixed"),
    [
        ({"kind": "infonce"}, "temperature", {"learn_temperature": False}),
        ({"kind": "sigmoid"}, "scale", {"learn_scale": False}),
        ({"kind": "sigmoid", "learn_scale": False}, "bias", {"learn_bias": False}),
        (
            {"kind": "hinge+infonce"},
            "infonce.temperature",
            {"infonce": {"learn_temperature": False}},
        ),
    ],
)
def test_a_number_that_is_learned_goes_on_from_the_checkpoint(
    tmp_path: Path, objective: dict[str, Any], key: str, fixed: dict[str, Any]
) -> None:
    def config(section: dict[str, Any], *named: str) -> Config:
        run = {"dir": "r", "resume_with": named}
        raw: dict[str, Any] = {"data": {"path": "d"}, "run": run, "objective": deepcopy(section)}
        for override in named:
            apply_override(raw, override)
        return Config.parse(raw)

    def state(section: dict[str, Any]) -> RunState:
        return RunState(step=7, fingerprint="f", config=config(section).model_dump(mode="json"))

    named = f"objective.{key}"
    with pytest.raises(ConfigError, match=f"^--resume-with {named}: it is learned") as caught:
        state(objective).check(config(objective, f"{named}=0.5"), "f", tmp_path)
    assert "\n" not in str(caught.value)
    # The remedy: without it the run goes on.
    assert state(objective).check(config(objective), "f", tmp_path) == {}
    still = objective | fixed
    changed = state(still).check(config(still, f"{named}=0.5"), "f", tmp_path)
    assert [new for _, new in changed.values()] == [0.5]


def test_what_was_said_to_change_is_allowed_returned_and_written_once(tmp_path: Path) -> None:
    def config(**optim: float) -> Config:
        named = [f"optim.{key}" for key in optim if key == "lr"]
        run = {"dir": "r", "resume_with": named}
        return Config.parse({"data": {"path": "d"}, "run": run, "optim": optim})

    state = RunState(step=7, fingerprint="f", config=config().model_dump(mode="json"))
    changed = state.check(config(lr=1e-5), "f", tmp_path)
    assert changed == {"optim.lr": (5e-4, 1e-5)}
    assert state.check(config(), "f", tmp_path) == {}
    with pytest.raises(CheckpointError, match=r"optim\.clip was 2\.0, is 1\.0\).*--resume-with"):
        state.check(config(lr=1e-5, clip=1.0), "f", tmp_path)
    for _ in range(2):  # a restart before the next checkpoint
        record_changes(tmp_path / "changes.jsonl", 7, changed)
    lines = (tmp_path / "changes.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 7, "changes": {"optim.lr": [5e-4, 1e-5]}}
    ]
