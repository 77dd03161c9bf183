"""A model embeds the same captions the same way in training and in every command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vse_scale.cli import app
from vse_scale.data.shards import ShardDataset
from vse_scale.model.vse import VSEModel
from vse_scale.report.from_run import ModelFindings
from vse_scale.run.folder import RunRecords
from vse_shards.build import BuildOptions, build
from vse_shards.demo import make_demo
from vse_shards.sources.jsonl import JsonlSource

LIMITS = {
    "set in the recipe": ("data.max_caption_tokens=40", 40),
    "the encoder's": ("model.text.architecture.max_position_embeddings=77", 77),
}


@pytest.fixture(scope="module")
def long_captions(tmp_path_factory) -> Path:
    """Drawn scenes with captions of 100 tokens and more: all five of a scene, in turns."""
    folder = tmp_path_factory.mktemp("long")
    make_demo(folder / "source", images=60)
    path = folder / "source" / "captions.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        captions = [c if isinstance(c, str) else c["text"] for c in record["captions"]]
        turns = [captions[n:] + captions[:n] for n in range(len(captions))]
        record["captions"] = [" ".join(turn * 3) for turn in turns]
        record.pop("caption_ids", None)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    build(JsonlSource(str(path), str(folder / "source")), str(folder / "shards"), BuildOptions())
    return folder / "shards"


def command(*arguments: object) -> None:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "name", [pytest.param("set in the recipe", marks=pytest.mark.slow), "the encoder's"]
)
def test_training_and_commands_cut_captions_alike(name, long_captions, small_run, tmp_path):
    setting, limit = LIMITS[name]
    run = tmp_path / "run"
    trained = subprocess.run(
        [
            sys.executable, "-m", "vse_scale.cli", "train", "--ranks", "1", "--config", small_run,
            f"data.path={long_captions}", setting, "train.max_steps=2",
        ],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-3000:]
    said = [line for line in trained.stderr.splitlines() if "are cut there" in line]
    assert len(said) == 1
    assert f"captions (100.0%) have more than {limit} tokens" in said[0]
    (record,) = map(json.loads, (run / "evaluations.jsonl").read_text().splitlines())

    split = ["--data", long_captions, "--split", "val"]
    command("eval", "--model", run, *split, "--json", tmp_path / "eval.json")
    command("embed", "--model", run, *split, "--out", tmp_path / "out")
    command("eval", "--embeddings", tmp_path / "out", "--json", tmp_path / "embed.json")
    for file in ("eval.json", "embed.json"):
        found = json.loads((tmp_path / file).read_text())
        assert {key: found[key] for key in ("i2t", "t2i", "rsum")} == {
            key: record[key] for key in ("i2t", "t2i", "rsum")
        }

    findings = ModelFindings(RunRecords.load(run), "val", device="cpu", threads=1)
    assert findings.similarities == record["similarities"]
    assert max(len(curve.weights) for curve in findings.pooling if curve.side == "text") == limit
    command("report", "--run", run)
    assert (run / "report.html").is_file()

    model = VSEModel.from_pretrained(run)
    assert model.input_spec.max_tokens == limit
    dataset = ShardDataset(long_captions, "val")
    texts = [c.text for row in range(len(dataset)) for c in dataset.record(row).captions]
    saved = np.load(tmp_path / "out" / "captions.npy")
    assert np.abs(model.embed(texts=texts).numpy() - saved).max() <= 1e-6
    # The limit matters: a token more is another embedding.
    assert model.tokenizer is not None
    ids, lengths = model.tokenizer.encode(texts[:1], max_tokens=limit - 1)
    with torch.no_grad():
        shorter = model.encode_captions(torch.from_numpy(ids), torch.from_numpy(lengths))
    assert np.abs(shorter.numpy() - saved[:1]).max() > 1e-5
