"""uv.lock names the tested set, from the public index, and what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from urllib.parse import urlsplit

from lowest import ROOT

LOCK = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
PACKAGES = LOCK["package"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_it_has_the_versions_of_the_constraints() -> None:
    locked: dict[str, set[str]] = {}
    for package in PACKAGES:
        locked.setdefault(package["name"], set()).add(package.get("version", ""))
    pins = re.findall(
        r"^([a-z0-9-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M
    )
    assert len(pins) >= 14
    assert [(name, pin) for name, pin in pins if pin not in locked.get(name, ())] == []
    # Beside the tested one, MLflow's; see the conflicts of pyproject.toml.
    assert [name for name, _ in pins if len(locked[name]) > 1] == ["pyarrow"]


def test_it_is_of_this_pyproject() -> None:
    (own,) = (package for package in PACKAGES if package["name"] == "vse-scale")
    asked = {(r["name"].lower(), r.get("specifier", "")) for r in own["metadata"]["requires-dist"]}
    extras = chain.from_iterable(PROJECT["optional-dependencies"].values())
    listed = [*PROJECT["dependencies"], *extras]
    given = {re.match(r"([\w.-]+)(?:\[[^]]*\])?(.*)", line).groups() for line in listed}
    assert asked == {(name.lower(), specifier) for name, specifier in given}


def test_it_names_the_public_index_alone() -> None:
    places = {
        package["source"]["registry"] for package in PACKAGES if "registry" in package["source"]
    }
    assert places == {"https://pypi.org/simple"}
    files = [wheel for package in PACKAGES for wheel in package.get("wheels", [])]
    files += [package["sdist"] for package in PACKAGES if "sdist" in package]
    assert {urlsplit(file["url"]).netloc for file in files} == {"files.pythonhosted.org"}
    assert all(file["hash"].startswith("sha256:") for file in files)
