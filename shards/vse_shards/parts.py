"""Find parts, such as sources, by the name that a user chooses them by."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Generic, TypeVar, cast

from vse_shards.errors import PartError
from vse_shards.notes import shown

T = TypeVar("T")


class Registry(Generic[T]):
    """Parts of one kind, by the name that chooses them.

    A part is a class. It is built in, or an entry point of an installed package, or given as
    ``module:Class``. Its module is imported when the part is asked for, not before: most parts
    need packages that a command which does not use them should not wait for.

    Args:
        kind: of the parts, for messages: ``source``.
        group: entry-point group in which packages offer further parts: ``vse_shards.sources``.
        builtin: ``module:Class`` by name, in the order in which help texts list the names. A name
            such as ``timm/NAME`` stands for all that begin with ``timm/``.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._builtin = dict(builtin)

    def names(self) -> tuple[str, ...]:
        """Return the names of the built-in parts, in order."""
        return tuple(self._builtin)

    def find(self, name: str) -> type[T]:
        """Import the part that a name chooses.

        A built-in part comes first, so that installing a package never changes what a recipe
        means.

        Args:
            name: a built-in name, the name of an entry point, or ``module:Class``.

        Raises:
            PartError: no part has the name, several packages offer it, or the part cannot be
                imported.
        """
        family, slash, _ = name.partition("/")
        for own in (name, f"{family}{slash}NAME"):
            if own in self._builtin:
                return self._load(self._builtin[own])
        offers = [entry for entry in metadata.entry_points(group=self.group) if entry.name == name]
        targets = sorted({entry.value for entry in offers})
        if len(targets) > 1:
            raise PartError(
                f"{self.kind} {name!r} is offered by {' and '.join(targets)}; give the one that "
                "you mean as module:Class"
            )
        if targets:
            return self._load_foreign(name, targets[0])
        if ":" in name:
            return self._load_foreign(name, name)
        raise PartError(self._unknown(name))

    def _unknown(self, name: str) -> str:
        foreign = {entry.name for entry in metadata.entry_points(group=self.group)}
        known = [*self._builtin, *sorted(foreign - self._builtin.keys())]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return (
            f"{self.kind} {shown(name)!r} is not known{hint} Choose {', '.join(known)}, or give a "
            "class of your own as module:Class"
        )

    def _load(self, target: str) -> type[T]:
        module, _, attribute = target.partition(":")
        found: object = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        if not isinstance(found, type):
            raise TypeError(f"{attribute} is {type(found).__name__}, not a class")
        return cast("type[T]", found)

    def _load_foreign(self, name: str, target: str) -> type[T]:
        """Import a class that is not ours: whatever its module raises becomes one line."""
        shown = repr(name) if name == target else f"{name!r} ({target})"
        try:
            return self._load(target)
        except ModuleNotFoundError as error:
            reason = f"{error}; install it, or add its folder to PYTHONPATH"
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            reason = f"{type(error).__name__}: {first}"
        raise PartError(f"{self.kind} {shown} cannot be imported: {reason}")
