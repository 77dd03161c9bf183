"""Print constraints that pin the packages of the commands to the lowest releases that are allowed.

torch alone stays at the release of ``constraints.txt``: earlier ones exist with gigabytes of CUDA
packages only, or at an address that not every machine reaches.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = {"test", "dev", "docs", "bench"}  # extras of developers
FLOOR = re.compile(r"([A-Za-z0-9-]+)(?:\[[^]]*\])?>=([\d.]+)")


def floors(path: str) -> dict[str, str]:
    """Return the lowest release of each package that a ``pyproject.toml`` names.

    Raises:
        ValueError: a package has none.
    """
    project = tomllib.loads((ROOT / path).read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    listed = [*project["dependencies"], *(r for e in extras if e not in TOOLS for r in extras[e])]
    # Of weights one release is taken, which is no lowest one.
    named = [line for line in listed if "vse-scale[" not in line and "-model==" not in line]
    found = {line: FLOOR.match(line) for line in named}
    if without := [line for line, one in found.items() if one is None]:
        raise ValueError(f"{path}: {without} have no lowest release")
    return {one[1]: one[2] for one in found.values() if one}


if __name__ == "__main__":
    for name, version in floors("pyproject.toml").items():
        if name != "torch":
            print(f"{name}=={version}")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("torch=="):
            print(line)
