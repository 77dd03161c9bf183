"""A run's folder: the name of every file in it, and its records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vse_scale.errors import OutputError
from vse_scale.run.journal import each_record, read_records
from vse_scale.run.records import EvaluationRecord, Results, StepRecord, machine_of
from vse_scale.run.series import Steps
from vse_shards.json_text import mapping, parse_json
from vse_shards.plain_files import read_plain
from vse_shards.yaml_text import parse_yaml

T = TypeVar("T")
_MODEL = "model"
_CHECKPOINTS = "checkpoints"
_CONFIG = "config.yaml"


@dataclass(frozen=True)
class RunFolder:
    """The files and folders of a run, by name; each is there once the run has written it.

    Attributes:
        path: the run's ``run.dir``.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration, one that ``Config.load`` reads back as equal."""
        return self.path / _CONFIG

    @property
    def steps_file(self) -> Path:
        """The log of steps, a `StepRecord` a line."""
        return self.path / "metrics.jsonl"

    @property
    def evaluations_file(self) -> Path:
        """The log of validations, an `EvaluationRecord` a line."""
        return self.path / "evaluations.jsonl"

    @property
    def changes_file(self) -> Path:
        """The settings that the run changed on its way, a line each time, see `record_changes`."""
        return self.path / "changes.jsonl"

    @property
    def results_file(self) -> Path:
        """The `Results` of a run that is over."""
        return self.path / "results.json"

    @property
    def ranks_file(self) -> Path:
        """The ranks of the best validation's queries, see `vse_scale.retrieval.recorded`."""
        return self.path / "ranks.json"

    @property
    def system_file(self) -> Path:
        """The machine that the run is on, see `vse_scale.run.system`."""
        return self.path / "system.json"

    @property
    def report_file(self) -> Path:
        """The report, where no other place is asked for."""
        return self.path / "report.html"

    @property
    def done_file(self) -> Path:
        """The empty file that marks a run as complete."""
        return self.path / "done"

    @property
    def lock_file(self) -> Path:
        """The owner of the folder while the run goes, see `vse_scale.run.lock`."""
        return self.path / "lock"

    @property
    def checkpoints_folder(self) -> Path:
        """The newest checkpoints, a folder each."""
        return self.path / _CHECKPOINTS

    @property
    def model_folder(self) -> Path:
        """The best model so far."""
        return self.path / _MODEL

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer, of a run that made one from its captions."""
        return self.path / "tokenizer"

    @property
    def tensorboard_folder(self) -> Path:
        """The curves for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def identity_file(self) -> Path:
        """The run's name in the programs that track it, such as W&B; made once."""
        return self.path / "identity"

    def steps(self) -> list[StepRecord]:
        """Read the log of steps; OutputError if a line is damaged."""
        return list(self.each_step())

    def each_step(self) -> Iterator[StepRecord]:
        """Read the log of steps one by one; OutputError if a line is damaged."""
        return each_record(self.steps_file, StepRecord.from_json)

    def evaluations(self) -> list[EvaluationRecord]:
        """Read the log of validations; OutputError if a line is damaged."""
        return read_records(self.evaluations_file, EvaluationRecord.from_json)


@dataclass(frozen=True)
class RunRecords:
    """The records of a run; each is empty where the run has not written it yet.

    Attributes:
        folder: that they are of.
        config: config.yaml, sections of keys.
        steps: metrics.jsonl, in order.
        evaluations: evaluations.jsonl, in order.
        results: results.json or, of a run that is not over, its best validation.
        system: system.json, the machine that the run was on.
    """

    folder: RunFolder
    config: dict[str, Any] = field(default_factory=dict)
    steps: Sequence[StepRecord] = field(default_factory=Steps)
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    results: Results = field(default_factory=Results)
    system: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.path.resolve().name

    @classmethod
    def load(cls, path: Path) -> RunRecords:
        """Read the run in ``path``, whatever of it is there.

        Raises:
            OutputError: there is no such folder, it is no run's, or one of its files is damaged.
        """
        if not path.is_dir():
            raise OutputError(f"{path}: no such run folder; give the run.dir of a training run")
        folder = RunFolder(path)
        records = (folder.config_file, folder.steps_file, folder.evaluations_file)
        others = (folder.results_file, folder.system_file, folder.lock_file)
        # An empty one is a run's that has not begun.
        if any(path.iterdir()) and not any(map(Path.exists, (*records, *others))):
            names = ", ".join(file.name for file in records)
            raise OutputError(f"{path}: is no run, it has none of {names}; give a run.dir")
        evaluations = folder.evaluations()
        results = _read(folder.results_file, lambda text: Results.from_json(parse_json(text)))
        return cls(
            folder,
            config=_read(folder.config_file, lambda text: mapping(parse_yaml(text) or {})) or {},
            steps=Steps(folder.each_step()),
            evaluations=evaluations,
            results=(results or Results()).with_best_of(evaluations),
            system=_read(folder.system_file, lambda text: machine_of(mapping(parse_json(text))))
            or {},
        )

    def setting(self, dotted: str, default: Any = None) -> Any:
        """Return the value of a configuration key such as ``data.path``."""
        value: Any = self.config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value


def model_folder(path: Path) -> Path:
    """Return the model's folder, given it or the folder of the run that trained it."""
    own = RunFolder(path).model_folder
    return own if own.is_dir() else path


def run_folder(path: Path) -> RunFolder | None:
    """Return the folder of the run that trained the model in ``path``, where there is one.

    Args:
        path: a model's folder, a checkpoint's, or its run's.
    """
    own = model_folder(path)
    if own.name == _MODEL:
        run = RunFolder(own.parent)
    else:
        run = RunFolder(own.parent.parent if own.parent.name == _CHECKPOINTS else own)
    return run if run.config_file.is_file() else None


def _read(path: Path, parse: Callable[[bytes], T]) -> T | None:
    """Return the parsed file, None where there is none, or raise OutputError."""
    try:
        return parse(read_plain(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise OutputError(f"{path}: is damaged ({reason}); restore or remove it") from error
