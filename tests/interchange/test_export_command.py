"""``vse-scale export`` prints what it wrote, for a person or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from warm import vse_scale


def test_export_says_what_it_wrote_and_how_to_open_it(folder, tmp_path):
    out = tmp_path / "mine"
    done = vse_scale("export", "--model", folder, "--out", out)
    assert done.returncode == 0, done.stderr
    total = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    assert done.stdout.splitlines() == [
        f"model: {out} ({len(list(out.iterdir()))} files, {total:.1f} MB; README.md is its card)",
        f"open it: VSEModel.from_pretrained({str(out)!r}), or --model {out} of a command",
    ]
    assert "{" not in done.stderr


def test_export_says_it_in_json(folder, tmp_path):
    done = vse_scale("export", "--model", folder, "--out", tmp_path / "mine", "--json")
    told = json.loads(done.stdout)
    files = {path.name: path.stat().st_size for path in Path(told["model"]).iterdir()}
    assert told == {"model": str(tmp_path / "mine"), "files": files, "pushed": None}
