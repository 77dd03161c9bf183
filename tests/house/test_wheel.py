"""The wheel, outside the repository: recipes, launch files and pages are in it.

After thammegowda/mtdata#82 (files of the repository that the wheel lacks).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from vse_scale.cli import main; main()"


@pytest.mark.slow
def test_the_wheel_stands_alone(tmp_path: Path) -> None:
    # pip builds where the source is: a copy, so that the repository stays as it was.
    source = tmp_path / "source"
    for name in ("vse_scale", "kernels", "shards", "launch"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source]
    subprocess.run(pip, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    # Links are files there, and nothing of the tests or of a cache comes along.
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "vse_kernels", "vse_scale", "vse_shards",
    }  # fmt: skip
    assert not [name for name in names if "__pycache__" in name]

    def said(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-c", CODE, tmp_path / "installed", *arguments],
            capture_output=True, text=True, cwd=tmp_path, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said("--version").startswith("vse-scale ")
    assert len(said("recipes").splitlines()) == len([*(ROOT / "launch/recipes").glob("*.yaml")])
    assert said("recipes", "demo") == (ROOT / "launch/recipes/demo.yaml").read_text()
    assert "path: data/demo/shards" in said("train", "--config", "demo", "--dry-run")
    said("launch-files", "cluster")
    assert {path.name for path in (tmp_path / "cluster").iterdir()} == {"monitoring", "slurm"}
    # Modules are the wheel's own, not the repository's.
    where = (
        "import sys; sys.path.insert(0, sys.argv[1]); import vse_scale; print(vse_scale.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", where, tmp_path / "installed"], capture_output=True, text=True
    )
    assert done.stdout.startswith(str(tmp_path / "installed"))


USE = """
import sys; sys.path.insert(0, sys.argv[1])
import torch, vse_kernels
print(vse_kernels.__file__)
rows = torch.zeros(3, dtype=torch.long)
features, table = torch.randn(3, 5, 4), torch.randn(2, 5)
operators, check = torch.ops.vse_kernels, torch.library.opcheck
check(operators.gpo_forward.default, (features, rows + 5, table, rows, False, True))
order = operators.gpo_forward(features, rows + 5, table, rows, False, True)[1]
upstream = torch.randn(3, 4)
check(operators.gpo_backward.default, (upstream, features, rows + 5, table, rows, order, False))
left, ids = torch.randn(3, 4), torch.arange(3)
check(operators.hardest_negatives.default, (left, left, ids, ids, True, False))
assert not {"vse_scale", "vse_shards"} & set(sys.modules)
"""


@pytest.mark.slow
def test_the_kernels_stand_alone(tmp_path: Path) -> None:
    """`pip install ./kernels`, without what it depends on: its operators, on CPU."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kernels", source, ignore=ignored)  # the licence is a link
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source]
    subprocess.run(pip, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "vse_kernels/py.typed" in archive.namelist()
        archive.extractall(tmp_path / "installed")
    done = subprocess.run(
        [sys.executable, "-P", "-c", USE, tmp_path / "installed"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "installed"))
