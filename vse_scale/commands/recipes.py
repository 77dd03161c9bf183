"""``vse-scale recipes``."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Annotated

import typer

from vse_shards.terminal import tell, tell_page


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="of the recipe to print; default: all names")
    ] = None,
) -> None:
    """List the recipes that come with the package, or print one.

    Its file is a start for one of your own: vse-scale recipes small > mine.yaml.
    """
    from vse_scale.config.recipe import recipe_names, shipped_recipe

    if name is None:
        names = recipe_names()
        for known in names:
            text = shipped_recipe(known).read_text(encoding="utf-8")
            tell(f"{known:{max(map(len, names))}}  {_first_sentence(text)}")
        return
    tell_page(shipped_recipe(name).read_text(encoding="utf-8").rstrip("\n"))


def _first_sentence(text: str) -> str:
    """Return the first sentence of the comment that a recipe begins with."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return re.split(r"(?<=\.) (?=[A-Z])", " ".join(line.lstrip("# ") for line in lines))[0]
