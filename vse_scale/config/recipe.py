"""Recipe files before they are checked: YAML over the files that it builds upon, and overrides."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

from vse_scale.config.synonyms import meant
from vse_scale.errors import ConfigError
from vse_shards.notes import MAX_NAME, shown
from vse_shards.yaml_text import parse_yaml, read_yaml

# The repository's launch/recipes, which comes with the package.
_RECIPES = Path(__file__).parents[1] / "recipes"
_MOST_BASES = 20  # one upon the other
_LONGEST_PATH = 4096  # limits.h


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in _RECIPES.glob("*.yaml"))


def find_recipe(given: str | Path) -> Path:
    """Return the file of a recipe's name, such as ``small``; else the path that is given.

    Raises:
        ConfigError: it is the name of no recipe, and of no file.
    """
    path = Path(given)
    if path.suffix or len(path.parts) != 1 or (path.exists() and not path.is_dir()):
        return path
    return shipped_recipe(path.name)


def shipped_recipe(name: str) -> Path:
    """Return the file of the recipe ``name`` that comes with the package.

    Raises:
        ConfigError: there is none.
    """
    known = recipe_names()
    if name not in known:
        near = difflib.get_close_matches(name[:MAX_NAME], known, 1)
        remedy = f"did you mean {near[0]}?" if near else f"the recipes are {', '.join(known)}"
        raise ConfigError(
            f"{shown(name)}: there is no such file, nor a recipe of that name; {remedy}"
        )
    return _RECIPES / f"{name}.yaml"


def read_recipe(
    path: Path, above: tuple[Path, ...] = (), known: dict[Path, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Read ``path``, which the files ``above`` build upon, over the bases that it names.

    Args:
        path: of the file.
        above: that it is a base of, the first first.
        known: files that were read before, merged; so a base of many is read once.

    Raises:
        ConfigError: a file is missing or is no YAML mapping, a base leads back to the file, or
            there are more than `_MOST_BASES` one upon the other.
    """
    known = {} if known is None else known
    if (resolved := path.resolve()) in known:
        return known[resolved]
    if resolved in (file.resolve() for file in above):
        chain = " -> ".join(str(file) for file in (*above, path))
        raise ConfigError(f"{path}: is built upon itself ({chain}); take one base out")
    if len(above) > _MOST_BASES:
        raise ConfigError(f"{above[0]}: builds upon more than {_MOST_BASES} files; write fewer")
    raw = _content(path, f"{above[-1]}: base " if above else "")
    bases = raw.pop("base", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(map(_is_path, bases)):
        raise ConfigError(f"{path}: base is {bases!r:.80}; give a file, or a list of files")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = _merge(merged, read_recipe(_base(path, base), (*above, path), known))
    known[resolved] = _merge(merged, raw)
    return known[resolved]


def _base(path: Path, base: str) -> Path:
    """Return the file ``base`` beside ``path``, or that of the package where there is none."""
    beside, shipped = path.parent / base, _RECIPES / base
    return beside if beside.exists() or not shipped.is_file() else shipped


def _is_path(base: object) -> bool:
    return isinstance(base, str) and "\0" not in base and len(base) <= _LONGEST_PATH


def _content(path: Path, asked: str) -> dict[str, Any]:
    """Return the mapping of one file; ``asked`` is what a message says first, of a base."""
    try:
        raw = read_yaml(path)
    except OSError as error:
        known = not os.path.exists(path) and path.stem in recipe_names()
        hint = f"; {path.stem}, its name alone, is the package's recipe" if known else ""
        raise ConfigError(f"{asked}{path}: cannot be read ({error.strerror}){hint}") from error
    except ValueError as error:
        raise ConfigError(f"{asked}{path}: is not YAML ({error})") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds {type(raw).__name__}, not sections of keys")
    return raw


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay ``above`` over ``below``; where both hold mappings these are merged likewise."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            value = _merge(under, value)
        merged[key] = value
    return merged


# A text of one line, a folder's name say, of which YAML would take "runs/try #2" for a comment, and
# "runs/lit: five" for a mapping. A mapping whose key is a word, such as "rank: 16", stays one.
_CUT_BY_YAML = re.compile(r"""(?![{\["'&*!|>%@`#])(?!\w+:\s)[^\n]*(\s\#|:\s)[^\n]*""")


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set what ``override`` says, ``section.key=value``, in ``raw``; the value is YAML.

    Raises:
        ConfigError: it is not of this form, or leads through a value.
    """
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        ours = meant(keys[0]) if equals and len(keys) == 1 else None
        hint = f"; did you mean {ours}={text}?" if ours else ""
        raise ConfigError(f"override {override!r} is not of the form section.key=value{hint}")
    try:
        value = _value(text)
    except ValueError as error:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from error
    section = raw
    for key in keys[:-1]:
        inner = section.get(key)
        if inner is None:
            inner = section[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {key} is a value, not a section")
        section = inner
    # YAML 1.1 reads 1e-3 as a string; pydantic turns it into the number the key asks for.
    section[keys[-1]] = value


def _value(text: str) -> Any:
    """Return what an override sets: the text where YAML would change it, else what YAML reads.

    Raises:
        ValueError: it is not YAML.
    """
    if _CUT_BY_YAML.fullmatch(text):
        return text
    value = parse_yaml(text)
    # YAML would make a space of a line break.
    return text if isinstance(value, str) and "\n" in text else value
