"""The rules that keep the code readable: parts answer for themselves, functions fit in a head."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vse_scale.config.parts import IMAGE_TOWERS, OBJECTIVES, POOLINGS, TEXT_TOWERS
from vse_scale.retrieval.protocols.registry import BESIDE, PROTOCOLS
from vse_shards.parts import Registry
from vse_shards.sources.registry import SOURCES

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for folder in ("vse_scale", "kernels/vse_kernels", "shards/vse_shards")
    for path in (ROOT / folder).rglob("*.py")
)
MOST_LINES, MOST_BRANCHES = 70, 12
BANNED = re.compile(r"(What|Who|Whoever|Where|How)\b")

# Words of the code beside: a reduction, an operation over ranks. They compare no pooling.
OTHER_MEANINGS = {
    # The member of a tar with a sample's description.
    "shards/vse_shards/sources/tar_rows.py": {"json"},
    "vse_scale/objective/hinge.py": {"mean"},
    "vse_scale/objective/negatives.py": {"mean"},
    "vse_scale/world/processes.py": {"max"},
    # Translates the published code's file format, whose encoders it knows by their shapes.
    "vse_scale/interchange/published_encoders.py": {"regions"},
}


def owners() -> dict[str, set[str]]:
    """Return the files that own each built-in part's name."""
    found: dict[str, set[str]] = {}
    registries: tuple[Registry, ...]
    registries = (IMAGE_TOWERS, TEXT_TOWERS, POOLINGS, OBJECTIVES, PROTOCOLS, BESIDE, SOURCES)
    for registry in registries:
        for name in registry.names():
            module = registry.find(name).__module__.replace(".", "/")
            found.setdefault(name, set()).add(f"{module}.py")
    return found


def compared(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the strings that are compared with something, or matched, and their lines."""
    for node in ast.walk(tree):
        kinds = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)
        if isinstance(node, ast.Compare) and any(isinstance(one, kinds) for one in node.ops):
            inside: ast.AST = node
        elif isinstance(node, ast.match_case):
            inside = node.pattern
        else:
            continue
        for part in ast.walk(inside):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.lineno, part.value


def test_nobody_else_compares_a_parts_name() -> None:
    names, found = owners(), []
    for path in FILES:
        place = str(path.relative_to(ROOT))
        for line, text in compared(ast.parse(path.read_text(encoding="utf-8"))):
            own = any(place.endswith(owner) for owner in names.get(text, ()))
            if text in names and not own and text not in OTHER_MEANINGS.get(place, ()):
                found.append(f"{place}:{line} compares {text!r}")
    assert found == []


def test_a_comparison_would_be_found() -> None:
    code = (
        'if a == "bigru" or kind in ("hinge", "x"):\n    pass\nmatch b:\n    case "cxc":\n        1'
    )
    assert {text for _, text in compared(ast.parse(code))} == {"bigru", "hinge", "x", "cxc"}


def branches(function: ast.AST) -> int:
    count = 0
    kinds = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case)
    for node in ast.walk(function):
        count += isinstance(node, kinds)
        if isinstance(node, ast.comprehension):
            count += len(node.ifs)
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
    return count


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_fit_in_a_head(path: Path) -> None:
    """Longer or more branched ones carry a comment right above that says why."""
    lines, found = path.read_text(encoding="utf-8").splitlines(), []
    for node in ast.walk(ast.parse("\n".join(lines))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length, count = (node.end_lineno or 0) - node.lineno + 1, branches(node)
        first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        reason = lines[first - 2].strip().startswith("#")
        if (length > MOST_LINES or count > MOST_BRANCHES) and not reason:
            found.append(f"{node.name}: {length} lines, {count} branches")
    assert found == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_name_their_thing_first(path: Path) -> None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        if text and BANNED.match(text):
            found.append(text.splitlines()[0])
    assert found == []


def test_help_texts_name_their_thing_first() -> None:
    import typer

    from vse_scale import cli
    from vse_shards import cli as shards_cli

    found = []
    for app in (cli.app, shards_cli.app):
        for name, command in typer.main.get_command(app).commands.items():
            texts = [command.help or "", *(getattr(p, "help", None) or "" for p in command.params)]
            found += [
                f"{name}: {text}" for text in texts if BANNED.match(text.strip().capitalize())
            ]
    assert found == []


def test_the_trainer_reads_from_top_to_bottom_in_one_file() -> None:
    trainer = ROOT / "vse_scale" / "training" / "trainer.py"
    assert len(trainer.read_text(encoding="utf-8").splitlines()) <= 400
