"""Imports run downward: a package knows those on lower floors and nothing above or beside it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the ground up. Packages that share a floor do not know each other. The modules that keep
# former names alive stand on the roof: nothing in the library uses them.
FLOORS = (
    ("vse_kernels", "vse_shards"),
    ("vse_scale.errors", "vse_scale.bounds"),
    ("vse_scale.console", "vse_scale.files"),
    ("vse_scale.world", "vse_scale.inputs", "vse_scale.html", "vse_scale.run"),
    ("vse_scale.config",),
    ("vse_scale.model", "vse_scale.objective", "vse_scale.data"),
    ("vse_scale.retrieval",),
    ("vse_scale.training", "vse_scale.report"),
    ("vse_scale.planning", "vse_scale.interchange"),
    ("vse_scale.bench",),
    ("vse_scale.commands",),
    ("vse_scale.cli", "vse_scale"),
)
FORMER = (
    *("evaluation/__init__.py", "telemetry/__init__.py", "former.py"),
    *("data/captions.py", "data/image_spec.py", "model/gpo.py"),
)
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
FILES = sorted(
    path
    for root in ("vse_scale", "kernels/vse_kernels", "shards/vse_shards")
    for path in (ROOT / root).rglob("*.py")
    if str(path.relative_to(ROOT / root)) not in FORMER
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in ("kernels", "shards"):
        parts = parts[1:]
    return ".".join(parts).removesuffix(".__init__")


def package_of(module: str) -> str | None:
    """Return the package of `FLOORS` that a module belongs to; None for other libraries."""
    parts = module.split(".")
    names = [".".join(parts[:size]) for size in range(len(parts), 0, -1)]
    return next((name for name in names if name in FLOOR), None)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and name of every module that is imported, at the top or within a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # What is imported may itself be a module.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_downward(path: Path) -> None:
    own = package_of(module_name(path))
    assert own is not None
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imported(path)
        if (other := package_of(name)) is not None and other != own and FLOOR[other] >= FLOOR[own]
    ]
    assert upward == []


def test_every_module_has_a_floor() -> None:
    homeless = [module_name(path) for path in FILES if package_of(module_name(path)) is None]
    assert homeless == []
    # A module of vse_scale that no floor names would fall to the roof, from where all is allowed.
    roof = {module_name(path) for path in FILES if package_of(module_name(path)) == "vse_scale"}
    assert roof == {"vse_scale"}
