"""The documented way to train from a notebook, as it stands in the documentation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_documented_lines_train_and_go_on(scenes: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    run = tmp_path / "runs" / "mine"
    script = (
        lines.replace("data/mine", str(scenes))
        .replace("runs/mine", str(run))
        .replace("launch/recipes", str(ROOT / "launch" / "recipes"))
        .replace(f'dir={run}"', f'dir={run}", "train.max_steps=2"')
    )
    more = script.replace("max_steps=2", "max_steps=3")
    (tmp_path / "notebook.py").write_text(f"{script}\n{more}\nassert not model.training\n")
    done = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((run / "results.json").read_text())
    assert results["steps"] == 3
    assert done.stdout.splitlines()[-1] == str(results["rsum"])
