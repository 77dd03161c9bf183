"""Observers follow a run: parts that are told of every step, validation and checkpoint.

A further one is a class with the methods of `Observer`, named in ``telemetry.observers`` by its
entry point in the group ``vse_scale.observers`` or as ``module:Class``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.errors import ConfigError, UserError
from vse_scale.run.extras import is_installed
from vse_scale.run.folder import RunFolder
from vse_scale.run.records import EvaluationRecord, StepRecord
from vse_scale.world.processes import World
from vse_shards.parts import Registry


class Follower(Protocol):
    """An object that follows a run on its main rank; its exceptions never end the run.

    One that also has a method ``finished`` is told, before `close`, that the last step is done.
    """

    def step(self, record: StepRecord) -> None:
        """Take in a training step."""

    def evaluation(self, record: EvaluationRecord) -> None:
        """Take in a validation."""

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Take in that the checkpoint at ``path`` was written within ``seconds``."""

    def close(self) -> None:
        """Stop following: the run ends, by itself or by an exception."""


class Observer(Follower, Protocol):
    """A part that is made when the run starts."""

    def __init__(
        self, config: Config, folder: RunFolder, *, next_step: int, total_steps: int
    ) -> None:
        """Start to follow a run that goes on at ``next_step``, of ``total_steps`` in all."""


OBSERVERS: Registry[Observer] = Registry(
    "observer",
    "vse_scale.observers",
    {
        "collapse": "vse_scale.training.watch.collapse:CollapseWatch",
        "tensorboard": "vse_scale.training.watch.tensorboard:TensorBoard",
        "wandb": "vse_scale.training.watch.weights_and_biases:WandB",
        "mlflow": "vse_scale.training.watch.mlflow_store:MLflow",
        "trackio": "vse_scale.training.watch.trackio_store:Trackio",
    },
)


def find_observers(config: Config) -> dict[str, type[Observer]]:
    """Return the observers of the main rank, by name, each once.

    Raises:
        ConfigError: ``telemetry.observers`` names one that cannot be found or imported.
    """
    builtin = ["collapse", "tensorboard"] if config.telemetry.tensorboard else ["collapse"]
    try:
        found = {name: OBSERVERS.find(name) for name in (*builtin, *config.telemetry.observers)}
    except UserError as error:
        raise ConfigError(f"telemetry.observers: {error}") from error
    for name, kind in found.items():
        package = getattr(kind, "package", None)
        if package is not None and not is_installed(package):
            raise ConfigError(
                f"telemetry.observers: {name} needs the package {package}, which is not "
                f"installed; pip install 'vse-scale[{package}]', or take it out of the list"
            )
    return found


def check_followers(followers: Sequence[object]) -> None:
    """Refuse objects that lack a method of `Follower`: a mistyped one would never be called.

    Raises:
        ConfigError: one does.
    """
    wanted = ("step", "evaluation", "checkpoint", "close")
    for place, one in enumerate(followers):
        if isinstance(one, type):
            raise ConfigError(
                f"observers[{place}] is the class {one.__name__}; give an object of it, or name "
                "the class in telemetry.observers"
            )
        if lacking := [name for name in wanted if not callable(getattr(one, name, None))]:
            raise ConfigError(
                f"observers[{place}] is {type(one).__name__}, without {' and '.join(lacking)}; an "
                f"observer has the methods {', '.join(wanted)}"
            )


class Observers:
    """All observers of a run: Prometheus on every rank, the others on the main one."""

    def __init__(
        self,
        config: Config,
        world: World,
        followers: Sequence[Follower] = (),
        *,
        next_step: int,
        total_steps: int,
    ) -> None:
        """Start to follow a run that goes on at ``next_step``, of ``total_steps`` in all."""
        self._following: dict[str, Follower] = {}
        # Here, so that a configuration is checked where prometheus-client is not installed.
        from vse_scale.training.watch.prometheus import Prometheus

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
            for place, one in enumerate(followers):
                self._following[f"observers[{place}] ({type(one).__name__})"] = one

    def step(self, record: StepRecord) -> None:
        """Tell all of a training step."""
        self._tell(lambda observer: observer.step(record))

    def evaluation(self, record: EvaluationRecord) -> None:
        """Tell all of a validation."""
        self._tell(lambda observer: observer.evaluation(record))

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Tell all of the checkpoint at ``path``, written within ``seconds``."""
        self._tell(lambda observer: observer.checkpoint(path, seconds))

    def finished(self) -> None:
        """Tell those that ask for it that the run's last step is done."""
        self._tell(lambda observer: getattr(observer, "finished", lambda: None)())

    def close(self) -> None:
        """Tell all that the run ends."""
        self._tell(lambda observer: observer.close())

    def _tell(self, call: Callable[[Follower], None]) -> None:
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
