"""Names in running text exist: settings, options, files of the repository, variables."""

from __future__ import annotations

import re
import shlex

import pytest
import typer
from commands import APPS
from documents import PATHS, ROOT, rendered, text_of

from vse_scale.config import Config
from vse_scale.config.schema import known_keys

FOLDERS = ("docs", "kernels", "launch", "shards", "tests", "vse_scale", "vse_kernels", "vse_shards")


SETTINGS = set(known_keys())
SECTIONS = "|".join(Config.model_fields)
OF_OTHERS = {"--node_rank"}  # options of DeepSpeed's launcher
CODE = sorted({(path, code) for path in PATHS for code in rendered(path).code})
SOURCES = [
    path.read_text(encoding="utf-8")
    for folder in ("kernels", "launch", "shards", "tests", "vse_scale")
    for pattern in ("*.py", "*.sh", "*.sbatch")
    for path in (ROOT / folder).rglob(pattern)
]
OPTIONS = {
    "--help",
    "--debug",  # of every command, read before it
    *(
        option
        for app in APPS.values()
        for command in typer.main.get_command(app.app).commands.values()
        for parameter in command.params
        for option in parameter.opts
    ),
}


def complaint(code: str) -> str | None:
    """Say what a span of inline code names that does not exist."""
    if found := re.fullmatch(rf"((?:{SECTIONS})\.[a-z_.]+)(=.*)?", code):
        if found[1] not in SETTINGS and not found[1].endswith((".py", ".sbatch")):
            return f"no setting {found[1]}"
    elif found := re.fullmatch(rf"((?:{'|'.join(FOLDERS)})/[\w./*-]+)", code):
        roots = (ROOT, ROOT / "kernels", ROOT / "shards")
        if not any(list(root.glob(found[1].rstrip("/"))) for root in roots):
            return f"no file {found[1]}"
    elif re.match(r"(vse-scale|vse-shards) [a-z]", code):
        program, name, *rest = shlex.split(code)
        commands = typer.main.get_command(APPS[program].app).commands
        if name not in commands:
            return f"no command {program} {name}"
        known = {option for parameter in commands[name].params for option in parameter.opts}
        wrong = [word for word in rest if word.startswith("--") and word not in known]
        if wrong:
            return f"{program} {name} has no {wrong[0]}"
    elif re.fullmatch(r"--[a-z][\w-]*", code) and code not in OPTIONS | OF_OTHERS:
        return f"no option {code}"
    return None


@pytest.mark.parametrize("path", PATHS)
def test_names_exist(path: str) -> None:
    wrong = [complaint(code) for there, code in CODE if there == path]
    assert [said for said in wrong if said] == []


@pytest.mark.parametrize("path", PATHS)
def test_variables_are_read_somewhere(path: str) -> None:
    for name in set(re.findall(r"\bVSE_[A-Z_]+\b", text_of(path))):
        assert any(name in source for source in SOURCES), f"{path}: nothing reads {name}"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("data.global_batch=8", None),
        ("data.globalbatch", "no setting data.globalbatch"),
        ("data/mine", None),
        ("launch/recipes/*.yaml", None),
        ("launch/recipes/none.yaml", "no file launch/recipes/none.yaml"),
        ("vse_kernels/hardest", None),
        ("vse-scale train --ranks N --config FILE.yaml", None),
        ("vse-scale train --rank N", "vse-scale train has no --rank"),
        ("vse-shards check", "no command vse-shards check"),
        ("--max-restarts", None),
        ("--max-restart", "no option --max-restart"),
    ],
)
def test_what_does_not_exist_is_named(code: str, said: str | None) -> None:
    assert complaint(code) == said
