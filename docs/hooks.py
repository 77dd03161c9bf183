"""Hooks of MkDocs: pages and files from outside docs/, linked as on a code host.

Links in the repository are relative paths, which a code host follows. Here the README files become
pages of the site, other files are laid into it as text, and links to either are turned round.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
PAGES = {  # file of the repository -> page of the site
    "README.md": "start.md",
    "kernels/README.md": "kernels.md",
    "shards/README.md": "shards.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_FILES = {page: file for file, page in PAGES.items()}
_FENCE = re.compile(r"^ *(```+).*?^ *\1`* *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for file, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page from paths in the repository to paths in the site."""
    here = page.file.src_uri
    origin = _FILES.get(here, f"docs/{here}")

    def turned(match: re.Match[str]) -> str:
        path, hash_, anchor = match[0].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        if target in PAGES:
            target = PAGES[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        elif (ROOT / target).is_file():
            target = _as_text(target, config, files)
        else:
            return match[0]  # MkDocs reports it
        return posixpath.relpath(target, posixpath.dirname(here) or ".") + hash_ + anchor

    text = outside_fences(markdown, lambda text: _LINK.sub(turned, text))
    for mark, made in (("<!-- sections -->", _sections), ("<!-- commands -->", commands)):
        if mark in text:
            text = text.replace(mark, made())
    return text


def outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """Apply ``change`` to the text outside of fenced blocks."""
    pieces, end = [], 0
    for fence in _FENCE.finditer(markdown):
        pieces += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, change(markdown[end:])])


def _as_text(path: str, config: MkDocsConfig, files: Files) -> str:
    """Lay a file of the repository into the site, under a name that a browser shows as text."""
    target = f"files/{path}.txt"
    if files.get_file_from_path(target) is None:
        files.append(File.generated(config, target, abs_src_path=str(ROOT / path)))
    return target


def _sections() -> str:
    """Return the classes of a run's configuration, comments and all, each under its key."""
    from vse_scale.config.parts import Choice
    from vse_scale.config.schema import Config

    found: list[str] = []

    def show(key: str, section: type) -> None:
        found.append(f"### {key}\n\n```python\n{inspect.getsource(section).rstrip()}\n```\n")

    def describe(section: Any, prefix: str) -> None:
        hints = get_type_hints(section, include_extras=True)
        for name, kind in hints.items():
            key = f"{prefix}{name}"
            choice = next((m for m in getattr(kind, "__metadata__", ()) if type(m) is Choice), None)
            if choice is not None:
                parts = [choice.registry.find(part).Settings for part in choice.registry.names()]
                bases = [base for part in parts for base in part.__mro__[:-1][::-1]]
                for settings in dict.fromkeys(bases):
                    show(f"{key}: {settings.__name__}", settings)
            elif inspect.isclass(kind) and (issubclass(kind, BaseModel) or is_dataclass(kind)):
                show(key, kind)
                describe(kind, f"{key}.")

    describe(Config, "")
    return "\n".join(found)


def commands() -> str:
    """Return every command of both programs, with its arguments and options."""
    import typer

    from vse_scale import cli as vse_scale_cli
    from vse_shards import cli as vse_shards_cli

    found = []
    for program, app in (("vse-scale", vse_scale_cli.app), ("vse-shards", vse_shards_cli.app)):
        group: Any = typer.main.get_command(app)
        found.append(f"## {program}")
        for name, command in group.commands.items():
            said = inspect.cleandoc(command.help or "")
            rows = "\n".join(map(_parameter, command.params))
            found += [f"### {program} {name}", said, f"| name | meaning |\n|---|---|\n{rows}"]
    return "\n\n".join(found) + "\n"


def _parameter(given: Any) -> str:
    """Return a row of the table of a command's arguments and options."""
    if given.param_type_name == "argument":
        names = given.metavar or given.name.upper()
    else:
        names = ", ".join([*given.opts, *given.secondary_opts])
    said = getattr(given, "help", None) or ""
    if given.required:
        said = f"{said} (required)".strip()
    elif given.default not in (None, False, "", [], ()) and not callable(given.default):
        said = f"{said} (default: {given.default})".strip()
    return "| {} | {} |".format(*(_cell(text) for text in (f"`{names}`", said)))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
