"""A run that goes on: what of its folder is missing, and whether its best model still counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.errors import OutputError
from vse_scale.run.folder import RunFolder
from vse_scale.run.journal import Journal
from vse_scale.run.lock import RunLock
from vse_scale.run.records import EvaluationRecord, Results, StepRecord
from vse_scale.training.checkpoint import RunState
from vse_scale.world.processes import World


@contextmanager
def owned(config: Config, world: World) -> Iterator[RunLock | None]:
    """Make the main rank the owner of the run's folder for the block; yield its lock there.

    Raises:
        OutputError: on all ranks, where another process owns it or it cannot be written.
    """
    lock = RunLock(Path(config.run.dir)) if world.main else None
    fault: OutputError | None = None
    try:
        if lock is not None:
            lock.__enter__()
    except OutputError as error:
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
    elif not folder.model_folder.is_dir() and state.best_step != state.step:
        log.warning(
            "%s is not there, and the weights of its step %d are in no checkpoint: the best model "
            "(RSUM %.1f) counts no more, and is replaced by the next",
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


def results_of(
    state: RunState,
    pairs_per_step: int,
    steps: Sequence[StepRecord],
    evaluations: Sequence[EvaluationRecord],
    split: str,
) -> Results:
    """Return the results of a run that is over: from its records, else from its last state."""
    best = next(
        (e for e in evaluations if e.step + 1 == state.best_step and e.split in (split, "")), None
    )
    if best is None and state.best_step is not None and state.best_rsum is not None:
        best = EvaluationRecord(step=state.best_step - 1, split=split, rsum=state.best_rsum)
    whole = len(steps) == state.step
    if not whole:
        log.warning(
            "metrics.jsonl has %d of %d steps; the results leave out the time of training",
            len(steps), state.step,
        )  # fmt: skip
    return Results(
        best=best,
        steps=state.step,
        pairs=state.step * pairs_per_step,
        train_seconds=sum(record.seconds["step"] for record in steps) if whole else None,
        final_loss=steps[-1].loss if steps and steps[-1].step + 1 == state.step else None,
        last_rsum=evaluations[-1].rsum if evaluations else None,
    )
