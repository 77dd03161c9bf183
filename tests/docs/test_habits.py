"""Hooks and workflow run the checks of `make lint` and `.ci/run`, at the installed versions."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from importlib.metadata import version

import pytest
import yaml
from documents import ROOT

from vse_shards import __version__

HOOKS = ROOT / ".pre-commit-config.yaml"
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
TOOLS = ".venv/bin/"


def commands() -> list[list[str]]:
    """The commands of the hooks that start a tool of the project."""
    (repository,) = yaml.safe_load(HOOKS.read_text())["repos"]
    assert repository["repo"] == "local"  # another would bring versions of its own
    return [
        shlex.split(hook["entry"]) for hook in repository["hooks"] if hook["language"] == "system"
    ]


def yaml_files() -> list[str]:
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.yml", "*.yaml"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode:
        pytest.skip("not a git repository")
    return [name for name in found.stdout.splitlines() if (ROOT / name).is_file()]


def test_hooks_start_the_tools_that_make_lint_starts() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert {words[0] for words in commands()} >= {f"{TOOLS}ruff", f"{TOOLS}mypy"}
    for program, *arguments in commands():
        name = program.removeprefix(TOOLS)
        assert program.startswith(TOOLS)
        assert version(name)
        assert " ".join([f"$(BIN)/{name}", *arguments[:1]]) in makefile


@pytest.mark.parametrize("tool", ["ruff", "mypy"])
def test_linters_are_pinned_to_the_installed_version(tool: str) -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert pins[tool] == version(tool)


def test_the_workflow_runs_the_script_that_every_change_must_pass() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert set(workflow[True]) >= {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true
    job = workflow["jobs"]["check"]
    assert job["timeout-minutes"] == 60
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    (python,) = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert python["cache-dependency-path"] == "constraints.txt"
    settings = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">={python["python-version"]}"' in settings


def test_all_yaml_parses() -> None:
    names = yaml_files()
    assert ".pre-commit-config.yaml" in names
    for name in names:
        assert list(yaml.safe_load_all((ROOT / name).read_text(encoding="utf-8"))), name


def test_issue_forms_ask_for_what_a_report_needs() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    for name in ("bug", "feature"):
        form = yaml.safe_load((folder / f"{name}.yml").read_text())
        identifiers = [item["id"] for item in form["body"]]
        assert len(identifiers) == len(set(identifiers))
    assert "`vse-scale doctor --json`" in (folder / "bug.yml").read_text()


def test_a_release_has_one_version_and_date_everywhere() -> None:
    released = __version__  # pyproject.toml takes it from there
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()
    first, second, *_ = re.findall(r"^## \[(.+?)\](?: - (.+))?$", changelog, re.MULTILINE)
    assert first == ("Unreleased", "")
    assert second == (released, str(citation["date-released"]))
    assert citation["version"] == released
