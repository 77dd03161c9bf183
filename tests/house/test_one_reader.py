"""One reader per kind of file that others wrote, and no other place that parses one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for folder in ("vse_scale", "shards/vse_shards") for path in (ROOT / folder).rglob("*.py")
)

# The calls, and the modules that may make them.
READERS = {
    "json.load": (),
    "json.loads": ("shards/vse_shards/json_text.py",),
    "yaml.load": (),
    "yaml.safe_load": (),
    "yaml.parse": ("shards/vse_shards/yaml_text.py",),
    "yaml.compose": (),
    "np.load": (),
    "np.memmap": ("shards/vse_shards/npy.py",),
    "torch.load": ("vse_scale/model/weights.py",),
    "load_file": ("vse_scale/model/weights.py",),
    "safe_open": ("vse_scale/model/weights.py",),
    "pickle.load": (),
    "pickle.loads": (),
}
# Texts that the same process wrote, into its own database or file.
OWN_TEXTS = {
    "json.loads": {
        f"shards/vse_shards/{name}.py"
        for name in ("carve", "checks", "contents", "filling", "row_text", "rows", "threshold")
    },
    # Bytes of a tar, which have no type.
    "np.memmap": {
        "vse_scale/data/recent.py",
        "vse_scale/data/counts.py",
        "shards/vse_shards/carve.py",
    },
}


def calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name, as written, of every function that is called or handed on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.lineno, ast.unparse(node)


def test_nothing_else_parses_what_others_wrote() -> None:
    found = []
    for path in FILES:
        place = str(path.relative_to(ROOT))
        for line, name in calls(ast.parse(path.read_text(encoding="utf-8"))):
            allowed = {*READERS.get(name, ()), *OWN_TEXTS.get(name, ())}
            if name in READERS and place not in allowed:
                found.append(f"{place}:{line} uses {name}; one of {sorted(allowed)} is the reader")
    assert found == []


def test_the_readers_are_where_this_list_says() -> None:
    """An entry that nothing uses would permit what it was not written for."""
    used = {
        (name, str(path.relative_to(ROOT)))
        for path in FILES
        for _, name in calls(ast.parse(path.read_text(encoding="utf-8")))
    }
    listed = {(name, place) for name, places in READERS.items() for place in places}
    listed |= {(name, place) for name, places in OWN_TEXTS.items() for place in places}
    assert listed - used == set()


def test_a_new_place_would_be_found() -> None:
    code = "rows = [json.loads(line) for line in file]\nparse = yaml.safe_load\nnp.load(path)"
    assert {name for _, name in calls(ast.parse(code))} >= {
        "json.loads", "yaml.safe_load", "np.load",
    }  # fmt: skip


def test_every_line_for_people_passes_the_escaping() -> None:
    """Lines go through `vse_shards.terminal` or the log, which write out what steers a terminal."""
    banned = {"print", "typer.echo", "click.echo", "sys.stdout.write", "sys.stderr.write"}
    found = [
        f"{place}:{line} uses {name}; use vse_shards.terminal.tell, or the log"
        for path in FILES
        if (place := str(path.relative_to(ROOT))) != "shards/vse_shards/terminal.py"
        for line, name in calls(ast.parse(path.read_text(encoding="utf-8")))
        if name in banned
    ]
    assert found == []
