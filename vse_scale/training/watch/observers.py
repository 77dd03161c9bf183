"""Observers follow a run: parts that are told of every step, validation and checkpoint.

A further one is a class with the methods of `Observer`, named in ``telemetry.observers`` by its
entry point in the group ``vse_scale.observers`` or as ``module:Class``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.errors import ConfigError, UserError
from vse_scale.run.folder import RunFolder
from vse_scale.run.records import EvaluationRecord, StepRecord
from vse_scale.training.watch.prometheus import Prometheus
from vse_scale.world.processes import World
from vse_shards.parts import Registry


class Observer(Protocol):
    """A part that follows a run on its main rank; its exceptions never end the run."""

    def __init__(
        self, config: Config, folder: RunFolder, *, next_step: int, total_steps: int
    ) -> None:
        """Start to follow a run that goes on at ``next_step``, of ``total_steps`` in all."""

    def step(self, record: StepRecord) -> None:
        """Take in a training step."""

    def evaluation(self, record: EvaluationRecord) -> None:
        """Take in a validation."""

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Take in that the checkpoint at ``path`` was written within ``seconds``."""

    def close(self) -> None:
        """Stop following: the run ends, by itself or by an exception."""


OBSERVERS: Registry[Observer] = Registry(
    "observer",
    "vse_scale.observers",
    {
        "collapse": "vse_scale.training.watch.collapse:CollapseWatch",
        "tensorboard": "vse_scale.training.watch.tensorboard:TensorBoard",
    },
)


def find_observers(config: Config) -> dict[str, type[Observer]]:
    """Return the observers of the main rank, by name, each once.

    Raises:
        ConfigError: ``telemetry.observers`` names one that cannot be found or imported.
    """
    builtin = ["collapse", "tensorboard"] if config.telemetry.tensorboard else ["collapse"]
    try:
        return {name: OBSERVERS.find(name) for name in (*builtin, *config.telemetry.observers)}
    except UserError as error:
        raise ConfigError(f"telemetry.observers: {error}") from error


class Observers:
    """All observers of a run: Prometheus on every rank, the others on the main one."""

    def __init__(self, config: Config, world: World, *, next_step: int, total_steps: int) -> None:
        """Start to follow a run that goes on at ``next_step``, of ``total_steps`` in all."""
        self._following: dict[str, Observer] = {}
        try:
            # Its metrics differ between the ranks, so it runs on all and needs their world.
            self._following["prometheus"] = Prometheus(config, world, total_steps=total_steps)
        except Exception as error:
            _warn("prometheus", error)
        if world.main:
            folder = RunFolder(Path(config.run.dir))
            for name, kind in find_observers(config).items():
                try:
                    self._following[name] = kind(
                        config, folder, next_step=next_step, total_steps=total_steps
                    )
                except Exception as error:
                    _warn(name, error)

    def step(self, record: StepRecord) -> None:
        """Tell all of a training step."""
        self._tell(lambda observer: observer.step(record))

    def evaluation(self, record: EvaluationRecord) -> None:
        """Tell all of a validation."""
        self._tell(lambda observer: observer.evaluation(record))

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Tell all of the checkpoint at ``path``, written within ``seconds``."""
        self._tell(lambda observer: observer.checkpoint(path, seconds))

    def close(self) -> None:
        """Tell all that the run ends."""
        self._tell(lambda observer: observer.close())

    def _tell(self, call: Callable[[Observer], None]) -> None:
        for name, observer in list(self._following.items()):
            try:
                call(observer)
            except Exception as error:
                del self._following[name]
                _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    reason = " ".join(str(error).split())
    log.warning(
        "observer %s failed and is dropped; the run goes on without it (%s: %s)",
        name, type(error).__name__, reason,
    )  # fmt: skip
