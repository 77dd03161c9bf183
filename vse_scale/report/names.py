"""Names of a run's parts, which the parts give themselves."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from vse_scale.config.model import IMAGE, TEXT
from vse_scale.config.parts import Choice
from vse_scale.run.folder import RunRecords


def image_tower(run: RunRecords) -> str:
    """Return the image encoder in words; empty where the run holds no configuration."""
    return _described(IMAGE, run, "model.image")


def text_tower(run: RunRecords) -> str:
    """Return the text encoder in words; empty where the run holds no configuration."""
    return _described(TEXT, run, "model.text")


def _described(choice: Choice, run: RunRecords, section: str) -> str:
    if not run.config:
        return ""
    stored = run.setting(section, {})
    settings = choice.recorded(stored)
    if settings is not None:
        # Values of a stranger's run may be of other kinds.
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            return str(settings.describe())
    # Of a part that this release does not know, the name is all there is.
    return str(stored.get(choice.key, "")) if isinstance(stored, Mapping) else ""
