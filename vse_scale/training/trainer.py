"""The training loop, from top to bottom: a batch, a step, an epoch's end, a run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vse_scale.config import Config
from vse_scale.console import Progress, log, logged
from vse_scale.data.loader import Batch, Loader
from vse_scale.data.plan import ORDER
from vse_scale.data.rng import mixed_seed
from vse_scale.data.staged import say_staged, since
from vse_scale.errors import TrainingError, UserError
from vse_scale.files import whole_folder, write_json
from vse_scale.model.vse import VSEModel
from vse_scale.objective.base import ObjectiveResult
from vse_scale.objective.cached import cached_backward
from vse_scale.objective.registry import objective_of
from vse_scale.run.folder import RunFolder
from vse_scale.run.journal import record_changes
from vse_scale.run.lock import RunLock, folder_first
from vse_scale.run.records import StepRecord
from vse_scale.training import captions, features, setup
from vse_scale.training.alive import long_work, tell_alive
from vse_scale.training.checkpoint import TENSORS, Checkpoints
from vse_scale.training.contract import EXIT_STOPPED
from vse_scale.training.engine import Engine
from vse_scale.training.failures import explained, note
from vse_scale.training.resumed import (
    lacks_validation,
    model_is_whole,
    newest_checkpoint,
    open_run,
    owned,
    results_of,
    resume,
    say_over,
)
from vse_scale.training.run_state import RunState
from vse_scale.training.schedule import Schedule, StepPlan
from vse_scale.training.state import SharedTensors
from vse_scale.training.stopping import Stopped, StopRequest
from vse_scale.training.timing import PhaseTimer, details_of, set_apart
from vse_scale.training.validation import summary, validate
from vse_scale.training.watch.observers import Follower, Observers
from vse_scale.training.writer import Writer, Written
from vse_scale.world.join import join_world
from vse_scale.world.place import is_main
from vse_scale.world.processes import World


def train(config: Config, observers: Sequence[Follower] = ()) -> int:
    """Train, validate and checkpoint as ``config`` says; return the process's exit code.

    Without a launcher this process is the only rank: this is the call for notebooks and scripts.

    Raises:
        UserError: the configuration, the dataset, a model or a checkpoint does not fit, another
            process trains in the run's folder, or the disk or the memory is full; the checkpoints
            stay, and the same call goes on from the newest.
    """
    trainer: Trainer | None = None
    with logged(main=is_main(os.environ)):
        world = join_world(config.engine.timeout_seconds)
        tell_alive()
        try:
            with owned(config, world) as lock:
                trainer = Trainer(config, world, lock)
                code = trainer.run(observers)
                if world.main and code == 0:
                    trainer.folder.done_file.touch()
                world.barrier()
            return code
        except UserError:
            raise
        except Exception as error:
            if (mended := explained(error, config, world.ranks)) is not None:
                raise mended from error
            note(error, 0 if trainer is None else trainer.state.step)
            raise


class Trainer:
    """One run on this rank. Building it restores the newest checkpoint where there is one."""

    def __init__(self, config: Config, world: World, lock: RunLock | None = None) -> None:
        self.config, self.world, self._lock = config, world, lock
        self.folder = RunFolder(Path(config.run.dir))
        self.checkpoints = Checkpoints(self.folder.checkpoints_folder, config.run.keep_checkpoints)
        found = newest_checkpoint(self.checkpoints, world)
        order = found[1].order if found else ORDER
        self.dataset, self.validation, self.plan = setup.open_data(config, world.ranks, order)
        self.objective = objective_of(config.objective)
        then = found[1].vocabulary if found else ""
        self.tokenizer = setup.prepare_tokenizer(config, self.dataset, self.folder, world, then)
        torch.manual_seed(config.run.seed)
        model = VSEModel(
            config.model,
            self.tokenizer.vocab_size,
            self.tokenizer.pad_id,
            config.data.max_caption_tokens,
        )
        model.to(world.device)
        self.state = RunState(
            step=0, fingerprint=self.dataset.fingerprint, config=config.recorded(),
            vocabulary=self.tokenizer.digest(), steps_per_epoch=self.plan.steps_per_epoch,
            order=order, parts=self.dataset.fingerprints,
        )  # fmt: skip
        self._saved, self._resumed = None, None
        tensors: SharedTensors | None = None
        if found:
            resumed = resume(found, self.state, config, self.dataset, self.validation, world)
            tensors = SharedTensors(resumed.origin / TENSORS, world)
            tensors.fill(model)
            tell_alive()
            self.state = self._saved = resumed.state
            self._resumed = resumed
        elif model.untrained_statistics:
            setup.calibrate(model, self.dataset, config, world)
        self._staged = self.dataset.staged
        features.cache_features(model, (self.dataset, self.validation), config, world)
        captions.hold(model, self.tokenizer, (self.dataset, self.validation), config, world)
        self.schedule = Schedule(config, self.plan.steps_per_epoch, self.state.shift)
        with long_work("building the engine"):
            self.engine = Engine(model, config, world, self.objective)
        self.writer = Writer(
            self.checkpoints, world, config.engine.timeout_seconds, self._tell, config.run.gather_gb
        )
        if tensors is not None:
            self.engine.restore(tensors)
            log.info("resumed from %s", resumed.origin)
            if resumed.changed and world.main:
                record_changes(self.folder.changes_file, self.state.step, resumed.changed)

    def run(self, told: Sequence[Follower] = ()) -> int:
        """Train from the restored position to the end of the schedule; return the exit code."""
        first, total = self.state.step, self.schedule.total_steps
        setup.announce(self.config, self.dataset, self.plan, self.world, first, self.schedule)
        timer = PhaseTimer(self.world.device)
        progress = Progress("step", total, initial=first, unit="steps", visible=self.world.main)
        if self.world.main:
            logs = open_run(self.folder, self.config, self.world.ranks, first)
            self.metrics, self.evaluations = logs
        self._skipped = 0
        observers = Observers(self.config, self.world, told, next_step=first, total_steps=total)
        with (
            closing(observers) as self.observers,
            StopRequest(self.world) as stop,
            self.writer,
            self._loader(first) as batches,
        ):
            if not self._caught_up(stop):
                return EXIT_STOPPED
            # A run that had lost patience has ended, and goes on only if given more.
            for step in range(first, first if self._patience_is_spent() else total):
                plan = self.schedule.at(step)
                record = self.train_step(next(batches), step, plan, timer)
                tell_alive()
                self._check_applied(record)
                self.state = replace(self.state, step=step + 1)
                self.observers.step(record)
                if self.world.main:
                    self.metrics.write(record)
                    progress.advance(details=details_of(record))
                if (code := self._end_step(plan, stop, total)) is not None:
                    if code == EXIT_STOPPED:
                        return code
                    break
            self.observers.finished()
        progress.close()
        say_staged(self.dataset.staged)
        self._finish()
        return 0

    def _end_step(self, plan: StepPlan, stop: StopRequest, total: int) -> int | None:
        """Validate and checkpoint where it is due; return the exit code where the run ends here."""
        stopping, validated, run = stop.requested(), True, self.config.run
        with folder_first(self._lock):
            self.writer.look()
        if self._validation_is_due(self.schedule):
            # A validation may last longer than those who ask to stop will wait.
            validated = not stopping and self._evaluate(plan.epoch, stop)
        ended = validated and (self.state.step == total or self._patience_is_spent())
        leaving = stopping or ended or not validated
        every = run.checkpoint_steps, run.checkpoint_epochs
        if leaving or self.schedule.due(self.state.step, *every):
            self._save()
        if leaving:
            with folder_first(self._lock):
                self.writer.finish()
        if leaving and not ended:
            self._say_stopped(validated)
            return EXIT_STOPPED
        return 0 if ended else None

    def train_step(self, batch: Batch, step: int, plan: StepPlan, timer: PhaseTimer) -> StepRecord:
        """Train on one batch; return the step's record for ``metrics.jsonl``."""
        timer.start(waited=batch.wait_seconds)
        # Dropout depends on these alone, so a resumed run drops the same units.
        torch.manual_seed(mixed_seed(self.config.run.seed, step, self.world.rank))
        self.engine.model.trained_stages = plan.trained_stages
        batch, compared = batch.compared(self.world)
        if self.config.engine.micro_batches == 1:
            images, captions = self._encode(batch)
            timer.mark("forward")
            found = self._loss(batch, plan, images, captions)
            timer.mark("objective")
            self.engine.backward(found.loss * plan.loss_scale)
        else:
            with self.engine.one_reduction():
                found = cached_backward(
                    batch.split(self.config.engine.micro_batches),
                    self._encode,
                    partial(self._loss, batch, plan),
                    lambda share: self.engine.backward(share * plan.loss_scale),
                )
        timer.mark("backward")
        norm = self.engine.step(plan)
        self.engine.learned.update(found.learned, plan, norm)
        timer.mark("optimizer")
        seconds = timer.seconds()
        set_apart(seconds, compared.seconds(), found.communication_seconds)
        loss = float(found.loss.detach())
        staged, self._staged = self._staged, self.dataset.staged
        return StepRecord(
            step=step,
            epoch=plan.epoch,
            epoch_fraction=(step + 1 + self.schedule.shift) / self.plan.steps_per_epoch,
            objective=plan.objective,
            loss=loss,
            learning_rate=plan.learning_rates,
            gradient_norm=norm,
            applied=math.isfinite(norm) and math.isfinite(loss),
            pairs_per_second=self.config.data.global_batch / seconds["step"],
            statistics=found.statistics,
            bytes_sent=found.bytes_sent + compared.bytes_sent,
            seconds=seconds,
            staging=since(staged, self._staged),
            checkpoint=self.writer.last_seconds(),
        )

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embed images and their captions, which are neighbours in the batch."""
        tell_alive()
        inputs = batch.images
        if batch.region_lengths is None:
            inputs = self.engine.model.image_spec.normalise(inputs)
        return self.engine.forward(
            inputs, batch.token_ids, batch.token_lengths, batch.cell_draws, batch.region_lengths
        )

    def _loss(
        self, batch: Batch, plan: StepPlan, images: Tensor, captions: Tensor
    ) -> ObjectiveResult:
        return self.objective.compute(
            images, captions, ids=batch.image_ids, valid=batch.valid, phase=plan.objective
        )

    def _check_applied(self, record: StepRecord) -> None:
        """Raise TrainingError where one step too many in a row left the weights as they were."""
        self._skipped = 0 if record.applied else self._skipped + 1
        if self._skipped > self.config.train.max_skipped_steps:
            raise TrainingError(
                f"step {record.step}: loss or gradient was not finite {self._skipped} times in a "
                "row; lower optim.lr, or look at the data of these steps"
            )

    def _patience_is_spent(self) -> bool:
        patience = self.config.eval.patience
        return patience is not None and self.state.stale >= patience

    def _validation_is_due(self, schedule: Schedule) -> bool:
        every = self.config.eval
        due = schedule.due(self.state.step, every.every_steps, every.every_epochs)
        return self.validation is not None and (self.state.step == schedule.total_steps or due)

    def _evaluate(self, epoch: int, stop: StopRequest) -> bool:
        """Validate and keep the best model; return False where it was stopped in the midst."""
        assert self.validation is not None
        try:
            record, ranks = validate(
                self.engine, self.tokenizer, self.validation, self.config, self.world,
                step=self.state.step - 1, epoch=epoch, check=stop.check,
            )  # fmt: skip
        except Stopped:
            return False
        best, now = self.state.best_rsum, self.state.step
        if best is None or record.rsum > best:
            self.state = replace(self.state, best_rsum=record.rsum, best_step=now, stale=0)
            self._export()
        else:
            self.state = replace(self.state, stale=self.state.stale + 1)
        if self.world.main:
            if best_so_far := self.state.best_step == now:
                ranks.save(self.folder.ranks_file)
            self.evaluations.write(record)
            self.evaluations.flush()
            self.observers.evaluation(record)
            log.info("%s%s", summary(record), " (best so far)" if best_so_far else "")
        return True

    def _caught_up(self, stop: StopRequest) -> bool:
        """Do what the run that goes on here left undone; return False where it was stopped."""
        resumed = self._resumed
        if self.validation is None or resumed is None or self.state.step == 0:
            return True
        lacking = resumed.best_is_lost or self._validation_is_due(resumed.schedule)
        if self.world.main and lacking and not resumed.best_is_lost:
            lacking = lacks_validation(self.state, self.validation.split, self.folder)
        if self.world.from_main(lacking):
            log.info("validating the weights of the checkpoint first")
            if not self._evaluate(resumed.schedule.at(self.state.step - 1).epoch, stop):
                self._say_stopped(validated=False)
                return False
            self._save()
        elif self.world.from_main(
            self.state.best_step == self.state.step and not model_is_whole(self.folder)
        ):
            where = self.folder.model_folder
            log.info("%s is not there whole: written again from the checkpoint", where)
            self._export()
        return True

    def _say_stopped(self, validated: bool) -> None:
        after = "" if validated else ", with the validation after it"
        said = "stopped after step %d as asked; the same command goes on%s"
        log.info(said, self.state.step - 1, after)

    def _export(self) -> None:
        """Write the current weights to the model's folder, in place of the former ones."""
        # One file at a time, in the order of the steps that they are of.
        with folder_first(self._lock):
            self.writer.finish()
        self._check_folder()
        with long_work("writing the model"), self.engine.whole_model() as model:
            if self.world.main:
                with whole_folder(self.folder.model_folder) as partial:
                    model.save_pretrained(partial, tokenizer=self.tokenizer)
        self.world.barrier()

    def _save(self) -> None:
        if self._saved == self.state:
            return
        self._check_folder()
        if self.world.main:
            # First, so that a checkpoint never holds steps that the records lack.
            self.metrics.flush()
        with folder_first(self._lock):
            self.writer.begin(self.engine, self.state)
        self._saved = self.state

    def _tell(self, written: Written) -> None:
        self.observers.checkpoint(written.path, written.write_seconds)
        log.info("checkpoint %s", written.path)

    def _check_folder(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def _finish(self) -> None:
        """Export a model that was not validated, and write the results."""
        if self.validation is None:
            self._export()
        if not self.world.main:
            return
        self.metrics.close()
        self.evaluations.close()
        results = results_of(
            self.state,
            self.config.data.global_batch,
            self.folder.each_step(),
            self.folder.evaluations(),
            self.validation.split if self.validation is not None else "",
        )
        write_json(self.folder.results_file, results.to_json())
        say_over(self.state.step, results, self.folder, self.config)

    def _loader(self, first: int) -> Loader:
        return Loader(
            self.dataset,
            self.plan,
            self.tokenizer,
            self.engine.model.input_spec,
            self.config.data,
            seed=self.config.run.seed,
            rank=self.world.rank,
            ranks=self.world.ranks,
            device=self.world.device,
            start=self.schedule.place(first),
            grid_cells=self.engine.model.grid_cells,
        )
