"""Checkpoints that are whole or absent: written aside, verified on load, the previous one kept.

A checkpoint is a folder ``step-00000123`` with ``state.safetensors`` (weights and optimizer, see
`Engine.state`), ``state.json`` (position, best result, data fingerprint, configuration) and
``files.json`` (size and sha256 of the others). It is written under a temporary name and renamed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeAlias

from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from vse_scale.bounds import Ge, Le
from vse_scale.config import Config
from vse_scale.config.resume import changes, check_learned, differences, keys_on_purpose
from vse_scale.console import log
from vse_scale.data.plan import ORDER
from vse_scale.errors import CheckpointError, ConfigError, StorageError
from vse_scale.files import PARTIAL, remedy_of, stays_unwritable, system_error, whole_folder
from vse_scale.training.optim import moments_of
from vse_scale.world.processes import World
from vse_shards.json_text import MOST_EXACT, mapping, read_json
from vse_shards.masking import masked
from vse_shards.plain_files import open_plain

TENSORS = "state.safetensors"
_NAME = "step-"
_FLOAT = 4  # bytes of a number: weights and moments are kept in float32


GrewFrom: TypeAlias = Callable[[str, Sequence[str]], bool]


def _grew_from_none(fingerprint: str, parts: Sequence[str]) -> bool:
    return False


class HasState(Protocol):
    """An object whose state a checkpoint keeps: the engine."""

    def state(self, *, keep: bool) -> dict[str, Tensor]:
        """Return it on the ranks that ``keep`` it; every rank calls."""
        ...


@dataclass(frozen=True)
class RunState:
    """All that a run needs, beside the engine's state, to go on where it was.

    Attributes:
        step: The next step to train; the steps before it are in the weights.
        fingerprint: Fingerprint of the dataset.
        config: The resolved configuration, as nested mappings.
        best_rsum: The best validation result so far, or None before the first.
        best_step: The step after which it was reached.
        stale: Evaluations since then.
        order: Version of the order of training, see `vse_scale.data.plan`.
        steps_per_epoch: Of the dataset; 0 in checkpoints of earlier releases.
        shift: Steps by which the place in the epochs is ahead of ``step``: an epoch that data was
            appended in begins anew, longer.
        vocabulary: Digest of the tokens; "" in checkpoints of earlier releases.
        parts: Fingerprints of the datasets that are mixed; () in checkpoints of earlier releases.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: Annotated[int, Ge(0), Le(MOST_EXACT)]
    fingerprint: str
    config: dict[str, Any]
    best_rsum: float | None = None
    best_step: int | None = None
    stale: int = 0
    order: Annotated[int, Ge(1), Le(ORDER)] = 1  # of checkpoints from before there was another
    steps_per_epoch: Annotated[int, Ge(0), Le(MOST_EXACT)] = 0
    shift: Annotated[int, Ge(-MOST_EXACT), Le(MOST_EXACT)] = 0
    vocabulary: str = ""
    parts: tuple[str, ...] = ()

    def check(
        self, config: Config, fingerprint: str, origin: Path, grew_from: GrewFrom = _grew_from_none
    ) -> dict[str, tuple[Any, Any]]:
        """Return what changes on purpose where a run with ``config`` goes on from here.

        Args:
            config: that the run is to go on with.
            fingerprint: of the dataset.
            origin: the checkpoint, for messages.
            grew_from: says whether the dataset is one of that fingerprint and those parts with rows
                appended.

        Returns:
            Old and new value of each key of ``run.resume_with`` that differs; "fingerprint" where
            the dataset has grown.

        Raises:
            CheckpointError: the run may not go on.
            ConfigError: a key of ``run.resume_with`` cannot be changed.
        """
        on_purpose = keys_on_purpose(config.run.resume_with, Config)
        check_learned(on_purpose, config.objective)
        grown = fingerprint != self.fingerprint
        begun_with = grown and grew_from(self.fingerprint, self.parts)
        if grown and not ("data.path" in on_purpose and begun_with):
            path = masked(str(config.data.path))
            remedy = (
                f"the latter is the former with rows appended: {_option(config.data.path)} goes on "
                "with all of them"
                if begun_with
                else "give the same dataset"
            )
            raise CheckpointError(
                f"{origin}: was trained on a dataset with fingerprint {self.fingerprint[:12]}, but "
                f"{path} has {fingerprint[:12]}; {remedy}, or another run.dir to start anew"
            )
        if grown and not self.steps_per_epoch:
            raise CheckpointError(
                f"{origin}: is of an earlier release, which kept no length of an epoch; let the "
                "run write one more checkpoint on the dataset as it was, then append"
            )
        # A stored configuration is read as this release has it: without keys of parts that were
        # not chosen, and with the defaults of settings that are new.
        try:
            then = Config.parse(self.config, f"{origin}: its configuration", stored=True)
        except ConfigError as error:
            raise CheckpointError(
                f"{error}; go on with the release that wrote it, or give another run.dir to start "
                "anew"
            ) from error
        old, new = then.recorded(), config.recorded()
        if changed := changes(old, new, Config, on_purpose):
            raise CheckpointError(
                f"{origin}: was trained with another configuration ({'; '.join(changed)}); give "
                "the same one, another run.dir to start anew, or --resume-with KEY=VALUE for what "
                "a run may change on purpose"
            )
        differing = differences(old, new)
        if grown:
            differing["fingerprint"] = (self.fingerprint, fingerprint)
        named = (*on_purpose, "fingerprint")
        return {key: values for key, values in differing.items() if key in named}


@dataclass(frozen=True)
class DiskUse:
    """The disk that a run's weights take, in bytes.

    Attributes:
        model: an exported model: its weights and buffers.
        checkpoint: the same with the optimizer's moments.
        checkpoints: the most that stand at once: those that are kept, and one being written.
    """

    model: int
    checkpoint: int
    checkpoints: int

    @classmethod
    def of(cls, model: nn.Module, config: Config) -> DiskUse:
        """Count the disk of a run of ``model``, which may be on the meta device."""
        parameters = sum(parameter.numel() for parameter in model.parameters())
        buffers = sum(buffer.numel() for buffer in model.buffers())
        exported = _FLOAT * (parameters + buffers)
        moments = _FLOAT * len(moments_of(config.optim)) * parameters
        average = _FLOAT * parameters if config.optim.average else 0
        return cls(exported, exported + moments + average, config.run.keep_checkpoints + 1)

    @property
    def total(self) -> int:
        """All of it: the checkpoints, and the best model, old and new."""
        return self.checkpoints * self.checkpoint + 2 * self.model


class Checkpoints:
    """The checkpoints of one run, in ``folder``; the newest ``keep`` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def newest(self) -> tuple[Path, RunState] | None:
        """Return the newest whole checkpoint and its state; None if there has been none.

        Raises:
            CheckpointError: there are checkpoints, and every one of them is damaged.
        """
        faults = []
        for path in self._finished():
            fault = _damage(path)
            if fault is None:
                return path, _read_state(path / "state.json")
            log.warning("%s: %s; trying the one before it", path, fault)
            faults.append(f"{path.name}: {fault}")
        if faults:
            raise CheckpointError(
                f"{self.folder}: no checkpoint is whole ({'; '.join(faults)}); restore one, or "
                "remove the folder to start anew"
            )
        return None

    def save(self, engine: HasState, state: RunState, world: World) -> Path:
        """Write a checkpoint of all ranks; every rank calls this, and the main one writes.

        Raises:
            CheckpointError: it cannot be written, as on a full disk; those before it stay.
            StorageError: the same, for a while.
        """
        final = self.folder / f"{_NAME}{state.step:08d}"
        tensors = engine.state(keep=world.main)
        if world.main:
            try:
                self._write(final, tensors, state)
            except (OSError, SafetensorError) as error:
                found = error if isinstance(error, OSError) else system_error(error)
                reason = str(error) if found is None else found.strerror or str(found)
                remedy = "make room" if found is None else remedy_of(found)
                passes = found is not None and not stays_unwritable(found)
                left = self._finished()
                raise (StorageError if passes else CheckpointError)(
                    f"{final}: cannot be written ({reason}); "
                    + (f"{left[0].name} stays" if left else "there is none before it")
                    + f"; {remedy}, and the same command goes on from there"
                ) from error
        world.barrier()
        return final

    def _write(self, final: Path, tensors: dict[str, Tensor], state: RunState) -> None:
        self.folder.mkdir(exist_ok=True)  # not its parents: the run's folder may have been removed
        # A checkpoint that a kill left half-written, of this step or another, only takes up room.
        for left in self.folder.glob(f".*{PARTIAL}"):
            shutil.rmtree(left)
        with whole_folder(final) as partial:
            save_file(tensors, partial / TENSORS)
            described = json.dumps(dataclasses.asdict(state), indent=1)
            (partial / "state.json").write_text(described)
            shutil.copymode(partial / "state.json", partial / TENSORS)
            (partial / "files.json").write_text(json.dumps(_inventory(partial), indent=1))
        for old in self._finished()[self._keep :]:
            shutil.rmtree(old)

    def _finished(self) -> list[Path]:
        return finished_checkpoints(self.folder)


def _option(path: str | Sequence[str]) -> str:
    """Return the words for a shell by which a run goes on with what its dataset has grown to."""
    value = path if isinstance(path, str) else json.dumps(list(path), ensure_ascii=False)
    if masked(value) != value:  # the command has it already, with its secret
        return "'run.resume_with=[data.path]'"
    return f"--resume-with {shlex.quote(f'data.path={value}')}"


def finished_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder``, the newest first; damaged ones are among them.

    Raises:
        CheckpointError: the folder cannot be read, so that there may be some.
        StorageError: the same, for a while.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = f"{folder}: cannot be read ({error.strerror})"
        if not stays_unwritable(error):
            raise StorageError(f"{reason}; {remedy_of(error)}") from error
        raise CheckpointError(
            f"{reason}; give the right to read it, or another run.dir to start anew"
        ) from error
    found = [n for n in names if n.startswith(_NAME) and n[len(_NAME) :].isdigit()]
    return [folder / name for name in sorted(found, reverse=True)]


def _inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the size and sha256 of every file below ``folder``."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": digest}
    return files


def _damage(folder: Path) -> str | None:
    """Return the fault of a checkpoint folder, or None if it is whole."""
    try:
        files = mapping(read_json(folder / "files.json"))
    except (OSError, ValueError) as error:
        return f"files.json cannot be read ({error})"
    try:
        for name, expected in files.items():
            path = folder / name
            size = path.stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, not {expected['bytes']!r:.20}"
            with open_plain(path) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    return f"{name} is not what was written (sha256 differs)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"what files.json lists cannot be read ({error})"
    return None if "state.json" in files else "state.json is not listed"


def _read_state(path: Path) -> RunState:
    try:
        return TypeAdapter(RunState).validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        reason = str(error)
    raise CheckpointError(
        f"{path}: was written by another release ({reason}); go on with that one, or give "
        "another run.dir to start anew"
    )
