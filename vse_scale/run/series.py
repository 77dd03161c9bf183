"""The steps of a long run in little memory: columns of numbers, records made when asked for."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

from vse_scale.run.records import StepRecord

T = TypeVar("T", bound=Hashable)
_EXACT = {"step": "q", "epoch": "q", "bytes_sent": "q", "epoch_fraction": "d", "loss": "d"}
_SHORT = ("gradient_norm", "pairs_per_second", "applied")  # kept to seven digits
_MAPPED = ("learning_rate", "statistics", "seconds", "staging", "checkpoint")  # the same


class Steps(Sequence[StepRecord]):
    """Records of steps, in about 130 bytes each; a `StepRecord` takes some 3,000.

    Steps, epochs, bytes and losses are exact; all other numbers are kept in 32 bits.

    Args:
        records: in order, as `RunFolder.each_step` yields them.
    """

    def __init__(self, records: Iterable[StepRecord] = ()) -> None:
        self._columns: dict[str, array[Any]] = {n: array(kind) for n, kind in _EXACT.items()}
        self._columns |= {name: array("f") for name in _SHORT}
        self._objectives: list[str] = []
        self._keys: list[tuple[tuple[str, ...], ...]] = []
        self._objective, self._shape = array("I"), array("I")
        self._starts, self._values = array("L"), array("f")
        self._extra: dict[int, Mapping[str, Any]] = {}
        objectives: dict[str, int] = {}
        shapes: dict[tuple[tuple[str, ...], ...], int] = {}
        for record in records:
            if record.extra:
                self._extra[len(self)] = record.extra
            for name, column in self._columns.items():
                column.append(getattr(record, name))
            mapped: list[Mapping[str, float]] = [getattr(record, name) for name in _MAPPED]
            self._objective.append(_code(objectives, self._objectives, record.objective))
            self._shape.append(_code(shapes, self._keys, tuple(map(tuple, mapped))))
            self._starts.append(len(self._values))
            for values in mapped:
                self._values.extend(values.values())

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._objective)

    def __eq__(self, other: object) -> bool:
        """Return whether ``other`` is a sequence of the same records."""
        return isinstance(other, Sequence) and list(self) == list(other)

    @overload
    def __getitem__(self, index: int) -> StepRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[StepRecord]: ...

    def __getitem__(self, index: int | slice) -> StepRecord | list[StepRecord]:
        """Return the record of one step, or those of some."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        fields: dict[str, Any] = {name: column[row] for name, column in self._columns.items()}
        start = self._starts[row]
        for name, keys in zip(_MAPPED, self._keys[self._shape[row]], strict=True):
            fields[name] = dict(zip(keys, self._values[start : start + len(keys)], strict=True))
            start += len(keys)
        fields["applied"] = bool(fields["applied"])
        objective = self._objectives[self._objective[row]]
        return StepRecord(objective=objective, extra=self._extra.get(row, {}), **fields)


def _code(known: dict[T, int], listed: list[T], value: T) -> int:
    if value not in known:
        known[value] = len(listed)
        listed.append(value)
    return known[value]
