"""Real photos from end to end: build, train on two ranks, evaluate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from warm import vse_scale

from vse_scale.run.journal import read_journal

RECIPE = Path(__file__).parents[1] / "launch" / "recipes" / "small.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_flickr8k(shared: Path, tmp_path: Path) -> None:
    photos, shards, run = shared / "data" / "flickr8k", tmp_path / "shards", tmp_path / "run"
    command = [Path(sys.executable).with_name("vse-shards"), "build", "--source", "jsonl"]
    options = ["--input", photos / "captions.jsonl", "--images", photos / "images", "--out", shards]
    built = subprocess.run([*map(str, [*command, *options])], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    manifest = json.loads((shards / "manifest.json").read_text())
    sizes = {name: (s["images"], s["pairs"]) for name, s in manifest["splits"].items()}
    assert sizes == {"train": (2000, 10000), "val": (500, 2500)}

    trained = vse_scale(
        *("train", "--ranks", "2", "--config", RECIPE, f"data.path={shards}"),
        *(f"run.dir={run}", "train.max_steps=100", "model.image.size=96"),
        timeout=1100,
    )
    assert trained.returncode == 0, trained.stderr[-3000:]
    losses = [r["loss"] for r in read_journal(run / "metrics.jsonl") if r["objective"] == "all"]
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])

    out = tmp_path / "recalls.json"
    evaluated = vse_scale("eval", "--model", run, "--data", shards, "--split", "val", "--json", out)
    assert evaluated.returncode == 0, evaluated.stderr
    recalls = json.loads(out.read_text())
    assert (recalls["images"], recalls["captions"]) == (500, 2500)
    # Chance is 1.0% and 2.0% at rank 10; so little training is well above it all the same.
    assert recalls["i2t"]["r10"] > 3.0
    assert recalls["t2i"]["r10"] > 4.0
    assert recalls["rsum"] == json.loads((run / "results.json").read_text())["rsum"]
