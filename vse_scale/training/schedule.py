"""The schedule: trained parts, learning rates and loss of a step, from the configuration alone.

The published schedule (Chen et al., CVPR 2021, and its code): in epoch 0 the backbone is frozen and
every violating negative counts; from epoch 1 everything trains on the hardest negative; during
epoch 1 the loss is scaled by i / n; at epoch 15 of 25 the learning rates are divided by ten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vse_scale.config import Config
from vse_scale.objective.registry import objective_of


@dataclass(frozen=True)
class StepPlan:
    """One step's part of the schedule.

    Attributes:
        epoch: Epoch of the step, from 0.
        index: Step within the epoch, from 0.
        objective: Phase of the objective, such as "hardest".
        loss_scale: Factor on the loss before its gradient; what is logged is unscaled.
        learning_rates: Learning rate of the "heads", the "text" encoder and the "backbone".
        trained_stages: Number of the backbone's last stages that train; the others do not move: no
            update, no decay, no step count. None: all of them.
    """

    epoch: int
    index: int
    objective: str
    loss_scale: float
    learning_rates: dict[str, float]
    trained_stages: int | None


class Schedule:
    """The plan of every step of a run.

    Args:
        config: of the run.
        steps_per_epoch: of its dataset.
        shift: steps by which the place in the epochs is ahead of the step, see `RunState`.
    """

    def __init__(self, config: Config, steps_per_epoch: int, shift: int = 0) -> None:
        self._objective = objective_of(config.objective)
        self._optim = config.optim
        self._train = config.train
        self._frozen = config.model.image.frozen
        self.steps_per_epoch = steps_per_epoch
        self.shift = shift
        steps = config.train.epochs * steps_per_epoch - shift
        self.total_steps = min(steps, config.train.max_steps or steps)

    def place(self, step: int) -> tuple[int, int]:
        """Return the epoch of global step ``step``, and the step within it, both from 0."""
        return divmod(step + self.shift, self.steps_per_epoch)

    def due(self, step: int, steps: int | None, epochs: int) -> bool:
        """Return whether an action due every ``steps``, or else ``epochs``, is due after ``step``.

        Args:
            step: number of steps that were trained.
            steps: steps from one to the next; None: epochs count.
            epochs: epochs from one to the next.
        """
        if steps:
            return step % steps == 0
        epoch, index = self.place(step)
        return index == 0 and epoch % epochs == 0

    def at(self, step: int) -> StepPlan:
        """Return the plan of global step ``step``, counted from 0."""
        epoch, index = self.place(step)
        rise = min(1.0, (step + 1) / (self._optim.warmup_steps or 1))
        rate = self._optim.lr * self._fall(step) * rise
        return StepPlan(
            epoch=epoch,
            index=index,
            objective=self._objective.phase(epoch),
            loss_scale=self._objective.loss_scale(epoch, index / self.steps_per_epoch),
            learning_rates={
                "heads": rate,
                "text": rate * self._optim.text_scale,
                "backbone": rate * self._optim.backbone_scale,
            },
            trained_stages=self._trained_stages(epoch),
        )

    def _fall(self, step: int) -> float:
        """Return the factor that the rates have fallen to."""
        optim = self._optim
        if optim.schedule == "steps":
            position = (step + self.shift) / self.steps_per_epoch
            return optim.drop_factor ** sum(position >= drop for drop in optim.drop_epochs)
        start, length = self._start, self._length
        passed = min(1.0, max(0.0, (self._at(step) - start) / max(length - start, 1)))
        left = (1 + math.cos(math.pi * passed)) / 2 if optim.schedule == "cosine" else 1 - passed
        return optim.final_factor + (1 - optim.final_factor) * left

    @property
    def _length(self) -> float:
        """Steps of a schedule with a length of its own."""
        optim = self._optim
        return optim.schedule_steps or (optim.schedule_epochs or 0.0) * self.steps_per_epoch

    @property
    def _start(self) -> float:
        """Steps of such a schedule before its rates fall."""
        optim = self._optim
        cosine = optim.schedule == "cosine"
        return optim.warmup_steps if cosine else self._length * (1 - optim.cooldown)

    def _at(self, step: int) -> int:
        """Return the place of global step ``step`` in such a schedule."""
        return step if self._optim.schedule_steps else step + self.shift

    def doubts(self, first: int) -> Iterator[str]:
        """Yield, from global step ``first`` on, what of the rates can hardly be meant."""
        optim, last = self._optim, self.total_steps - 1
        if optim.schedule == "steps":
            return
        if optim.warmup_steps >= self._length:
            yield (
                f"optim.warmup_steps is {optim.warmup_steps}, and the whole of optim.schedule="
                f"{optim.schedule} {self._length:g} steps; set a shorter warm-up, or a longer "
                "schedule"
            )
        end = max(self._length, self._start + 1)
        rest = max(first, first + math.ceil(end) - self._at(first))
        if not optim.final_factor and rest < last:
            key = "schedule_steps" if optim.schedule_steps else "schedule_epochs"
            yield (
                f"steps {rest} to {last} have a learning rate of 0 and learn nothing: optim."
                f"schedule={optim.schedule} ends before them, by optim.{key}; raise it, set "
                "optim.final_factor above 0, or train less"
            )

    def _trained_stages(self, epoch: int) -> int | None:
        unfrozen_epochs = epoch - self._train.frozen_backbone_epochs
        if self._frozen or unfrozen_epochs < 0:
            return 0
        each = self._train.backbone_warmup_epochs
        return unfrozen_epochs // each + 1 if unfrozen_epochs < 3 * each else None
