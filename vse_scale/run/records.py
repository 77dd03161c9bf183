"""The records of a run: its training steps, its validations, and its results.

Each record is one JSON object. Records of other releases can be read: a key that this release does
not know is kept, and a number that is not recorded is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Numbers = Mapping[str, float]
_MOST = 1 << 63


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One training step, a line of ``metrics.jsonl``.

    Attributes:
        step: of the run, counted from 0.
        epoch: counted from 0.
        epoch_fraction: epochs trained once the step is over.
        objective: the phase of the objective, such as "all" or "hardest".
        loss: of the global batch, before the schedule scales it.
        learning_rate: by part of the model: "heads", "text", "backbone".
        gradient_norm: of the whole gradient before clipping.
        applied: whether the weights were updated: loss and gradient were finite.
        pairs_per_second: pairs of the global batch over the seconds of the step.
        statistics: figures of the objective by name, such as "violating", the share of the anchors
            with a violating negative; "positive_similarity", the mean cosine of the batch's pairs;
            and "hardest_similarity", that of the anchors with their hardest negatives.
        bytes_sent: bytes that left this rank for the loss.
        seconds: by phase, and "step", all of them together.
        staging: what this rank's loader fetched of remote shards since the last step, by the
            names of `vse_scale.data.staged`; empty where nothing was staged.
        checkpoint: seconds of the checkpoint that was written since the record before: "stall",
            that the steps waited for it, and "write", until it counted; empty if there was none.
        extra: entries of other releases.
    """

    step: int
    epoch: int = 0
    epoch_fraction: float = math.nan
    objective: str = ""
    loss: float
    learning_rate: Numbers = field(default_factory=dict)
    gradient_norm: float = math.nan
    applied: bool = True
    pairs_per_second: float = math.nan
    statistics: Numbers = field(default_factory=dict)
    bytes_sent: int = 0
    seconds: Numbers = field(default_factory=dict)
    staging: Numbers = field(default_factory=dict)
    checkpoint: Numbers = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the object to write, its keys in the order of a line."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "epoch_fraction": self.epoch_fraction,
            "objective": self.objective,
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "applied": self.applied,
            "pairs_per_second": self.pairs_per_second,
            **self.statistics,
            "bytes_sent": self.bytes_sent,
            "seconds": self.seconds,
            **({"staging": self.staging} if self.staging else {}),
            **({"checkpoint": self.checkpoint} if self.checkpoint else {}),
            **self.extra,
        }

    @classmethod
    def from_json(cls, line: object) -> StepRecord:
        """Return the record of a line, once parsed.

        Raises:
            ValueError: it is no object, lacks its step or loss, or a value is of another kind.
        """
        given, rest = _sorted_out(line, _STEP_KINDS, required=("step", "loss"))
        statistics = {key: float(value) for key, value in rest.items() if _is_number(value)}
        extra = {key: value for key, value in rest.items() if key not in statistics}
        return cls(**given, statistics=statistics, extra=extra)


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One validation, a line of ``evaluations.jsonl``.

    Attributes:
        step: the last trained step, counted from 0.
        epoch: of that step, counted from 0.
        split: that was validated on.
        recalls: figures by direction, such as ``recalls["i2t"]["r1"]``; their names, units and
            labels are `vse_scale.retrieval.metrics`'s.
        rsum: the sum of the recalls in percent.
        intervals: of the recalls by direction and of "rsum", pairs of numbers, as
            `vse_scale.retrieval.intervals` finds them; empty if not recorded.
        pooling: GPO's weights by position, by side ("image", "text"); empty if not recorded.
        similarities: counts of similarities by bin, "positive" and "hardest_negative"; empty if
            not recorded.
        seconds: that the validation took.
        extra: entries of other releases.
    """

    step: int
    epoch: int = 0
    split: str = ""
    recalls: Mapping[str, Numbers] = field(default_factory=dict)
    rsum: float = math.nan
    intervals: Mapping[str, Any] = field(default_factory=dict)
    pooling: Mapping[str, list[float]] = field(default_factory=dict)
    similarities: Mapping[str, list[int]] = field(default_factory=dict)
    seconds: float = math.nan
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the object to write, its keys in the order of a line."""
        kept = {"pooling": dict(self.pooling), "similarities": dict(self.similarities)}
        return {
            **self.figures(),
            **{key: value for key, value in kept.items() if value},
            "seconds": self.seconds,
            **self.extra,
        }

    @classmethod
    def from_json(cls, line: object) -> EvaluationRecord:
        """Return the record of a line, once parsed.

        Raises:
            ValueError: it is no object, lacks its step, or a value is of another kind.
        """
        given, extra = _sorted_out(line, _EVALUATION_KINDS, required=("step",))
        recalls = {key: _numbers(value) for key, value in extra.items() if _is_numbers(value)}
        rest = {key: value for key, value in extra.items() if key not in recalls}
        return cls(**given, recalls=recalls, extra=rest)

    def figures(self) -> dict[str, Any]:
        """Return the entries that a run's results take over: no histograms, no time."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "split": self.split,
            **self.recalls,
            "rsum": self.rsum,
            **({"intervals": self.intervals} if self.intervals else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Results:
    """The outcome of a run, ``results.json``; of a run that is not over, its best validation.

    Attributes:
        best: the validation with the highest rsum; None if there was none.
        steps: that were trained; None while the run is not over.
        pairs: that were trained on, over all ranks.
        train_seconds: of all steps, without validations.
        final_loss: of the last step.
        last_rsum: of the last validation.
    """

    best: EvaluationRecord | None = None
    steps: int | None = None
    pairs: int | None = None
    train_seconds: float | None = None
    final_loss: float | None = None
    last_rsum: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object to write: the best validation's figures, then the run's."""
        best = self.best
        figures = {} if best is None else {**best.figures(), "seconds": best.seconds, **best.extra}
        if best is not None and math.isnan(best.seconds):
            del figures["seconds"]  # not recorded; JSON has no NaN
        own = {key: getattr(self, key) for key in _RESULT_KINDS}
        return figures | {key: value for key, value in own.items() if value is not None}

    def with_best_of(self, evaluations: Sequence[EvaluationRecord]) -> Results:
        """Return the same, with the best of ``evaluations`` where no validation is known."""
        if self.best is not None or not evaluations:
            return self
        best = max(evaluations, key=lambda record: -1 if math.isnan(record.rsum) else record.rsum)
        return replace(self, best=best)

    @classmethod
    def from_json(cls, stored: object) -> Results:
        """Return the results of a file, once parsed.

        Raises:
            ValueError: it is no object, or a value is of another kind.
        """
        given, rest = _sorted_out(stored, _RESULT_KINDS, required=())
        return cls(**given, best=EvaluationRecord.from_json(rest) if "rsum" in rest else None)


def _numbers(value: Any) -> dict[str, float]:
    return {str(key): float(number) for key, number in value.items()}


def _times(value: Any) -> dict[str, float]:
    numbers = _numbers(value)
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError("is not finite")
    return numbers


def machine_of(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of ``system.json``, once parsed.

    Raises:
        ValueError: a value is of another kind.
    """
    gpus = content.get("gpus", [])
    fits = {
        "gpus": isinstance(gpus, list) and all(map(_is_gpu, gpus)),
        "memory_bytes": _is_size(content.get("memory_bytes", 0)),
        "packages": isinstance(content.get("packages", {}), dict),
    }
    if wrong := next((key for key, fit in fits.items() if not fit), None):
        raise ValueError(f"{wrong} is {content[wrong]!r:.80}")
    return content


def _is_size(value: Any) -> bool:
    return _is_number(value) and bool(0 <= value < _MOST)


def _is_gpu(value: object) -> bool:
    return isinstance(value, dict) and "name" in value and _is_size(value.get("memory_bytes"))


def _is_numbers(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_number, value.values()))


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**1023  # as many as a float can hold


def _count(value: Any) -> int:
    count = int(value)
    if abs(count) >= _MOST:
        raise ValueError("is beyond 64 bits")
    return count


def _lists(value: Any) -> dict[str, list[Any]]:
    return {str(key): list(values) for key, values in value.items()}


_STEP_KINDS: dict[str, Callable[[Any], Any]] = {
    "step": _count,
    "epoch": _count,
    "epoch_fraction": float,
    "objective": str,
    "loss": float,
    "learning_rate": _numbers,
    "gradient_norm": float,
    "applied": bool,
    "pairs_per_second": float,
    "bytes_sent": _count,
    "seconds": _times,
    "staging": _times,
    "checkpoint": _times,
}
_EVALUATION_KINDS: dict[str, Callable[[Any], Any]] = {
    "step": _count,
    "epoch": _count,
    "split": str,
    "rsum": float,
    "intervals": dict,
    "pooling": _lists,
    "similarities": _lists,
    "seconds": float,
}
_RESULT_KINDS: dict[str, Callable[[Any], Any]] = {
    "steps": _count,
    "pairs": _count,
    "train_seconds": float,
    "final_loss": float,
    "last_rsum": float,
}


def _sorted_out(
    line: object, kinds: Mapping[str, Callable[[Any], Any]], required: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values of ``kinds`` in ``line``, each of its kind, and those of other keys."""
    if not isinstance(line, dict):
        raise ValueError(f"is no object but {type(line).__name__}")
    if missing := [key for key in required if line.get(key) is None]:
        raise ValueError(f"lacks {' and '.join(missing)}")
    given = {}
    for key, kind in kinds.items():
        if line.get(key) is not None:
            try:
                given[key] = kind(line[key])
            except (TypeError, ValueError, AttributeError, OverflowError) as error:
                raise ValueError(f"{key} is {line[key]!r:.80}") from error
    return given, {key: value for key, value in line.items() if key not in kinds}
