"""Inputs of the panels: a run's records, and findings of its model on the evaluated split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vse_scale.report.examples import Example, Failures
from vse_scale.run.folder import RunRecords


@dataclass(frozen=True)
class PoolingCurve:
    """The weights that GPO learned for one length, the largest value of a channel first."""

    side: str  # "image" or "text"
    unit: str  # of the pooled vectors: "cells", "regions" or "tokens"
    weights: tuple[float, ...]


class Findings(Protocol):
    """Results of a model on a split; an implementation may compute each when it is first read."""

    @property
    def examples(self) -> Sequence[Example]:
        """Retrieval examples of queries drawn at random; empty where none were made."""
        ...

    @property
    def failures(self) -> Failures | None:
        """The failed queries; None where none were looked for."""
        ...

    @property
    def pooling(self) -> Sequence[PoolingCurve]:
        """Learned pooling weights; empty without a model."""
        ...

    @property
    def intervals(self) -> Mapping[str, Any]:
        """Confidence intervals of the recalls, for a run that recorded none; or empty."""
        ...

    @property
    def similarities(self) -> Mapping[str, Sequence[int]] | None:
        """Histograms, as `similarity_histograms` makes them; None without a model."""
        ...


@dataclass(frozen=True)
class KnownFindings:
    """Findings given by value; by default there are none."""

    examples: Sequence[Example] = ()
    failures: Failures | None = None
    pooling: Sequence[PoolingCurve] = ()
    similarities: Mapping[str, Sequence[int]] | None = None
    intervals: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportData:
    """One run as its panels see it.

    Attributes:
        run: the records of its folder.
        found: findings of its model.
    """

    run: RunRecords
    found: Findings = field(default_factory=KnownFindings)


@dataclass(frozen=True)
class Column:
    """A run in a comparison: its records, its name, and the CSS class of its colour."""

    run: RunRecords
    name: str
    style: str
