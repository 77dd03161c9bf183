"""Checkpoints that are whole or absent: written aside, verified on load, the previous one kept.

A checkpoint is a folder ``step-00000123`` with ``state.safetensors`` (weights and optimizer, see
`Engine.shares`), ``state.json`` (position, best result, data fingerprint, configuration) and
``files.json`` (size and sha256 of the others). It is written under a temporary name and renamed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.errors import CheckpointError, StorageError
from vse_scale.files import PARTIAL, remedy_of, stays_unwritable, whole_folder
from vse_scale.model.adapters import trained_numbers
from vse_scale.training.optim import moments_of
from vse_scale.training.run_state import RunState
from vse_scale.training.state import write_tensors
from vse_shards.json_text import mapping, read_json
from vse_shards.plain_files import open_plain

TENSORS = "state.safetensors"
_STATE, _FILES = "state.json", "files.json"
_NAME = "step-"
_FLOAT = 4  # bytes of a number: weights and moments are kept in float32


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
        moments = _FLOAT * len(moments_of(config.optim)) * trained_numbers(model)
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
                return path, _read_state(path / _STATE)
            log.warning("%s: %s; trying the one before it", path, fault)
            faults.append(f"{path.name}: {fault}")
        if faults:
            raise CheckpointError(
                f"{self.folder}: no checkpoint is whole ({'; '.join(faults)}); restore one, or "
                "remove the folder to start anew"
            )
        return None

    def write(
        self,
        tensors: Mapping[str, Tensor] | Callable[[Path], str],
        state: RunState,
        check: Callable[[], None] = lambda: None,
    ) -> Path:
        """Write a checkpoint; the main rank does, and once this returns the checkpoint counts.

        Args:
            tensors: whole, see `Engine.shares`; or what writes their file and returns its sha256.
            state: of the run.
            check: is called now and then, and may raise: nothing is left of the checkpoint then.

        Raises:
            CheckpointError: it cannot be written, as on a full disk; those before it stay.
            StorageError: the same, for a while.
        """
        final = self.folder / f"{_NAME}{state.step:08d}"
        try:
            self._write(final, tensors, state, check)
        except OSError as error:
            reason = error.strerror or str(error)
            left = self._finished()
            raise (CheckpointError if stays_unwritable(error) else StorageError)(
                f"{final}: cannot be written ({reason}); "
                + (f"{left[0].name} stays" if left else "there is none before it")
                + f"; {remedy_of(error)}, and the same command goes on from there"
            ) from error
        return final

    def _write(
        self,
        final: Path,
        tensors: Mapping[str, Tensor] | Callable[[Path], str],
        state: RunState,
        check: Callable[[], None],
    ) -> None:
        self.folder.mkdir(exist_ok=True)  # not its parents: the run's folder may have been removed
        # A checkpoint that a kill left half-written, of this step or another, only takes up room.
        for left in self.folder.glob(f".*{PARTIAL}"):
            shutil.rmtree(left)
        with whole_folder(final) as partial:
            described = json.dumps(dataclasses.asdict(state), indent=1).encode()
            (partial / _STATE).write_bytes(described)
            path = partial / TENSORS
            digests = {
                _STATE: hashlib.sha256(described).hexdigest(),
                TENSORS: tensors(path)
                if callable(tensors)
                else write_tensors(path, tensors, check),
            }
            files = {
                name: {"bytes": (partial / name).stat().st_size, "sha256": digest}
                for name, digest in digests.items()
            }
            (partial / _FILES).write_text(json.dumps(files, indent=1))
        for old in self._finished()[self._keep :]:
            shutil.rmtree(old)

    def _finished(self) -> list[Path]:
        return finished_checkpoints(self.folder)


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
        raise _unreadable(
            folder, error, "give the right to read it, or another run.dir to start anew"
        ) from error
    found = [n for n in names if n.startswith(_NAME) and n[len(_NAME) :].isdigit()]
    return [folder / name for name in sorted(found, reverse=True)]


def _damage(folder: Path) -> str | None:
    """Return the fault of a checkpoint folder, or None if it is whole.

    Raises:
        CheckpointError: it cannot be read, so that nobody can tell.
        StorageError: the same, for a while.
    """
    try:
        files = mapping(read_json(folder / _FILES))
        for name, expected in files.items():
            path = folder / name
            size = path.stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, not {expected['bytes']!r:.20}"
            with open_plain(path) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    return f"{name} is not what was written (sha256 differs)"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        return f"lacks a file ({error})"
    except (ValueError, KeyError, TypeError) as error:
        return f"its {_FILES} is none ({error})"
    except OSError as error:
        raise _unreadable(
            folder, error, "give the right to read it, or remove it to go on from the one before it"
        ) from error
    return None if _STATE in files else f"{_STATE} is not listed"


def _unreadable(path: Path, error: OSError, remedy: str) -> CheckpointError | StorageError:
    """Return the error of what is there and cannot be read: it is not taken for missing."""
    reason = f"{path}: cannot be read ({error.strerror})"
    if stays_unwritable(error):
        return CheckpointError(f"{reason}; {remedy}")
    return StorageError(f"{reason}; {remedy_of(error)}")


def _read_state(path: Path) -> RunState:
    try:
        return TypeAdapter(RunState).validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        reason = str(error)
    except OSError as error:
        raise _unreadable(path, error, "give the right to read it") from error
    raise CheckpointError(
        f"{path}: was written by another release ({reason}); go on with that one, or give "
        "another run.dir to start anew"
    )
