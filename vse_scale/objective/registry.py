"""The objectives by name, and how one is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from vse_scale.config.parts import OBJECTIVE, OBJECTIVES, complaint
from vse_scale.errors import ConfigError, UserError

if TYPE_CHECKING:
    # A configuration looks objectives up, and need not import torch for that.
    from vse_scale.objective.base import Objective

DEFAULT = OBJECTIVE.default


def make_objective(kind: str = DEFAULT, **settings: Any) -> Objective:
    """Make an objective from settings, such as ``make_objective("hinge", margin=0.1)``.

    Raises:
        PartError: there is no such objective.
        ConfigError: it has no such setting, or the value is out of bounds.
    """
    from pydantic import TypeAdapter, ValidationError

    made: type[Objective] = OBJECTIVES.find(kind)
    known = [field.name for field in fields(OBJECTIVE.settings_of(kind))]
    for key in settings:
        if key not in known:
            raise ConfigError(f"objective {kind} has no setting {key}; it has {', '.join(known)}")
    try:
        return made(TypeAdapter(made.Settings).validate_python({"kind": kind, **settings}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        dotted = ".".join(map(str, ("objective", *first["loc"])))
        raise ConfigError(complaint(first, dotted, section=not first["loc"])) from error


def objective_of(settings: Any) -> Objective:
    """Return the objective of checked settings, the section ``objective:`` of a configuration."""
    objective: Objective = OBJECTIVES.find(settings.kind)(settings)
    return objective


def recorded_objective(section: object) -> Objective | None:
    """Return the objective of a run, from the section ``objective:`` of its recorded configuration.

    None where this release does not know it: it is another release's, or its package is missing.
    """
    settings = section if isinstance(section, Mapping) else {}
    if not isinstance(settings.get("kind", DEFAULT), str):
        return None
    try:
        return make_objective(**settings)
    except (UserError, TypeError):
        return None
