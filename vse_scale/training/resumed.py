"""A run that goes on: what of its folder is missing, and whether its best model still counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vse_scale.config import Config
from vse_scale.console import duration, log
from vse_scale.data.mixing import Dataset
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import CheckpointError, UserError
from vse_scale.files import write_json, write_text
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.folder import weights_file
from vse_scale.model.weights import open_tensors
from vse_scale.run.folder import RunFolder
from vse_scale.run.journal import Journal
from vse_scale.run.lock import RunLock
from vse_scale.run.records import EvaluationRecord, Results, StepRecord
from vse_scale.run.system import describe_origin, describe_system
from vse_scale.training.alive import long_work
from vse_scale.training.checkpoint import Checkpoints
from vse_scale.training.run_state import RunState
from vse_scale.training.schedule import Schedule
from vse_scale.world.processes import World
from vse_shards.json_text import read_json


@contextmanager
def owned(config: Config, world: World) -> Iterator[RunLock | None]:
    """Make the main rank the owner of the run's folder for the block; yield its lock there.

    Raises:
        OutputError: on all ranks, where another process owns it or it cannot be written.
        StorageError: on all ranks, where the disk fails for a while.
    """
    lock = RunLock(Path(config.run.dir)) if world.main else None
    fault: UserError | None = None
    try:
        if lock is not None:
            lock.__enter__()
    except UserError as error:
        fault = error
    if (fault := world.from_main(fault)) is not None:
        raise fault
    try:
        yield lock
    finally:
        if lock is not None:
            lock.__exit__()


def open_journals(folder: RunFolder, next_step: int) -> tuple[Journal, Journal]:
    """Open the logs of steps and of validations, to go on at ``next_step``."""
    return (
        Journal(folder.steps_file, next_step=next_step, kind=StepRecord.from_json),
        Journal(folder.evaluations_file, next_step=next_step, kind=EvaluationRecord.from_json),
    )


def open_run(
    folder: RunFolder, config: Config, ranks: int, next_step: int
) -> tuple[Journal, Journal]:
    """Write configuration and system into the run's folder, and open its logs at ``next_step``."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text(folder.config_file, config.to_yaml(recorded=True))
    write_json(folder.system_file, {**describe_system(ranks), "origin": describe_origin()})
    return open_journals(folder, next_step)


def newest_checkpoint(checkpoints: Checkpoints, world: World) -> tuple[Path, RunState] | None:
    """Read and verify on the main rank, so that all go on from the same checkpoint or none.

    Raises:
        CheckpointError: on all ranks, where none of those that there are is whole.
        StorageError: on all ranks, where the disk fails for a while.
    """
    found: tuple[Path, RunState] | UserError | None = None
    if world.main:
        try:
            with long_work("reading the newest checkpoint"):
                found = checkpoints.newest()
        except UserError as error:
            found = error
    found = world.from_main(found)
    if isinstance(found, UserError):
        raise found
    return found


@dataclass(frozen=True)
class Resumed:
    """A run that goes on from a checkpoint.

    Attributes:
        origin: folder of the checkpoint.
        state: of the run on its dataset, which may have grown.
        changed: old and new value of each key that changes on purpose.
        schedule: by which the steps up to the checkpoint were trained, and validations were due.
        best_is_lost: whether the best model so far counts no more.
    """

    origin: Path
    state: RunState
    changed: dict[str, tuple[Any, Any]]
    schedule: Schedule
    best_is_lost: bool


def resume(
    found: tuple[Path, RunState],
    fresh: RunState,
    config: Config,
    dataset: Dataset,
    validation: ShardDataset | None,
    world: World,
) -> Resumed:
    """Return the run that goes on from the checkpoint that was ``found``; every rank calls this.

    Args:
        found: folder of the checkpoint, and its state.
        fresh: state of a run that would start anew.
        config: that the run goes on with.
        dataset: that it goes on with.
        validation: split that is validated on.
        world: of this rank.

    Raises:
        CheckpointError: the run may not go on.
        ConfigError: a key of ``run.resume_with`` cannot be changed.
    """
    origin, then = found
    folder = RunFolder(Path(config.run.dir))
    changed = then.check(config, fresh.fingerprint, origin, dataset.grew_from)
    check_vocabulary(then, fresh.vocabulary, origin, folder)
    state = then
    if world.main:  # which alone says what it finds
        state = on_dataset(then, dataset, validation, fresh.steps_per_epoch)
        if validation is not None:
            state = best_that_counts(state, validation.split, folder)
    state = world.from_main(state)
    lost = validation is not None and state.best_rsum != then.best_rsum
    before = Schedule(config, then.steps_per_epoch or fresh.steps_per_epoch, then.shift)
    state = replace(
        state, config=fresh.config, vocabulary=fresh.vocabulary, parts=dataset.fingerprints
    )
    return Resumed(origin, state, changed, before, lost)


def model_is_whole(folder: RunFolder) -> bool:
    """Return whether the run's model is there, no file of it missing or cut short."""
    path = folder.model_folder
    try:
        open_tensors(weights_file(path))  # its header says how long it is
        read_json(path / "config.json")
        return CaptionTokenizer.find(path) is not None
    except (OSError, ValueError, SafetensorError, UserError):
        return False


def check_vocabulary(state: RunState, vocabulary: str, origin: Path, folder: RunFolder) -> None:
    """Raise CheckpointError where the token ids mean other words than those of the weights.

    Args:
        state: of the checkpoint ``origin``.
        vocabulary: digest of the tokens that captions would be read with.
        origin: folder of the checkpoint.
        folder: of the run.
    """
    if state.vocabulary and state.vocabulary != vocabulary:
        raise CheckpointError(
            f"{origin}: was trained with another vocabulary; put the tokenizer back that the run "
            f"was started with, in {folder.tokenizer_folder} or where model.text.tokenizer is "
            f"({folder.model_folder} may still hold it), or give another run.dir to start anew"
        )


def on_dataset(
    state: RunState, dataset: Dataset, validation: ShardDataset | None, steps_per_epoch: int
) -> RunState:
    """Return ``state`` as it is on ``dataset``: with its place in the epochs where that has grown.

    The epoch begins anew with what was appended. Where the validation split has grown too the best
    model counts no more.
    """
    if state.fingerprint == dataset.fingerprint:
        return replace(state, steps_per_epoch=steps_per_epoch)
    epoch, done = divmod(state.step + state.shift, state.steps_per_epoch)
    log.info(
        "the dataset has grown: %d steps an epoch, were %d; epoch %d begins %s",
        steps_per_epoch, state.steps_per_epoch, epoch + 1, f"anew, {done} steps were done of it"
        if done else "with all of it",
    )  # fmt: skip
    shards = 0 if validation is None else _validated_shards(state, dataset, validation)
    state = replace(
        state, fingerprint=dataset.fingerprint, steps_per_epoch=steps_per_epoch,
        shift=epoch * steps_per_epoch - state.step,
    )  # fmt: skip
    if validation is None or state.best_rsum is None or shards == len(validation.shard_sizes):
        return state
    log.warning(
        "split %s has grown too: the best model so far (RSUM %.1f) counts no more, and is "
        "replaced by the next", validation.split, state.best_rsum,
    )  # fmt: skip
    return replace(state, best_rsum=None, best_step=None, stale=0)


def _validated_shards(state: RunState, dataset: Dataset, validation: ShardDataset) -> int:
    """Return the shards that the validation split had; 0 where nothing says."""
    parts = dict(zip(dataset.fingerprints, state.parts, strict=False))
    then = parts.get(validation.fingerprint, state.fingerprint)
    if then == validation.fingerprint:
        return len(validation.shard_sizes)
    return validation.former.get(then, 0)


def best_that_counts(state: RunState, split: str, folder: RunFolder) -> RunState:
    """Return ``state`` without its best validation where that does not count, and say so.

    Args:
        state: of the newest checkpoint, with the configuration that it was written with.
        split: that is validated on from now on.
        folder: of the run.
    """
    if state.best_rsum is None:
        return state
    then = (state.config.get("eval") or {}).get("split") or "val"
    if then != split:
        log.warning(
            "eval.split was %s, is %s: the best model so far (RSUM %.1f) counts no more, and is "
            "replaced by the next", then, split, state.best_rsum,
        )  # fmt: skip
    elif state.best_step != state.step and not model_is_whole(folder):
        log.warning(
            "%s is not there whole, and the weights of its step %d are in no checkpoint: the best "
            "model (RSUM %.1f) counts no more, and is replaced by the next",
            folder.model_folder, state.best_step or 0, state.best_rsum,
        )  # fmt: skip
    else:
        return state
    return replace(state, best_rsum=None, best_step=None, stale=0)


def lacks_validation(state: RunState, split: str, folder: RunFolder) -> bool:
    """Return whether the run was stopped in the validation that was due at ``state``."""
    return state.best_step != state.step and not any(
        record.step + 1 == state.step and record.split == split for record in folder.evaluations()
    )


def say_over(step: int, results: Results, folder: RunFolder, config: Config) -> None:
    """Say that all steps are trained, in what time, and where the model is."""
    took = results.train_seconds
    spent = "" if took is None else f" in {duration(took)}, without evaluation"
    log.info("trained %d steps%s; model in %s", step, spent, folder.model_folder)
    if results.best is None:
        log.warning(
            "no validation: the dataset has no split %s, so the last model is kept, not the best; "
            "build one with that split, or set eval.split", config.eval.split or "val",
        )  # fmt: skip


def results_of(
    state: RunState,
    pairs_per_step: int,
    steps: Iterable[StepRecord],
    evaluations: Sequence[EvaluationRecord],
    split: str,
) -> Results:
    """Return the results of a run that is over: from its records, else from its last state."""
    best = next(
        (e for e in evaluations if e.step + 1 == state.best_step and e.split in (split, "")), None
    )
    if best is None and state.best_step is not None and state.best_rsum is not None:
        best = EvaluationRecord(step=state.best_step - 1, split=split, rsum=state.best_rsum)
    count, seconds = 0, 0.0
    last: StepRecord | None = None
    for last in steps:
        count += 1
        seconds += last.seconds.get("step", 0.0)
    whole = count == state.step
    if not whole:
        log.warning(
            "metrics.jsonl has %d of %d steps; the results leave out the time of training",
            count, state.step,
        )  # fmt: skip
    return Results(
        best=best,
        steps=state.step,
        pairs=state.step * pairs_per_step,
        train_seconds=seconds if whole else None,
        final_loss=last.loss if last is not None and last.step + 1 == state.step else None,
        last_rsum=evaluations[-1].rsum if evaluations else None,
    )
