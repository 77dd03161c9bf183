"""The marks of what may change on resume: the published list, walked through all sections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from vse_scale.config import Config, Section
from vse_scale.config.resume import MAY_CHANGE, changeable_keys, changes


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
