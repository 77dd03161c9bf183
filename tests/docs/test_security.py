"""The page on security gives the floors of packages and the limits that the code has."""

from __future__ import annotations

import re

import pytest
from documents import text_of
from lowest import floors

from vse_scale.config.recipe import _MOST_BASES
from vse_scale.model.limits import MOST_LAYERS
from vse_shards import json_text, plain_files, yaml_text
from vse_shards.sources.base import _MOST_JSON

PAGE = text_of("docs/security.md")


def test_the_floors_are_those_of_both_packages() -> None:
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| (.+) \|$", PAGE, re.MULTILINE)
    listed = {name: version for name, version, reason in rows if reason}
    known = floors("pyproject.toml")
    for name, version in floors("shards/pyproject.toml").items():
        assert known.setdefault(name, version) == version, f"{name} has two floors"
    assert listed == known


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("256 MB a file", plain_files.MOST_BYTES >> 20),
        ("annotations: 2 GB", _MOST_JSON >> 30),
        ("nesting of 100,", json_text.MOST_DEPTH),
        ("4 MB, nesting", yaml_text.MOST_BYTES >> 20),
        ("nesting of 50,", yaml_text.MOST_DEPTH),
        ("1,000,000 values", yaml_text.MOST_NODES),
        ("20 bases", _MOST_BASES),
        ("1,000 layers", MOST_LAYERS),
    ],
)
def test_the_limits_are_those_of_the_code(said: str, value: int) -> None:
    assert said in PAGE
    assert int(re.sub(r"\D", "", said)) == value
