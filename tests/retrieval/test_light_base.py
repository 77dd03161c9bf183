"""The commands that use a model need none of the packages that training brings.

After huggingface/sentence-transformers#2904 and #2637 (gigabytes of packages for whoever encodes
some texts), #2444 (an installation "just for inference") and unclecode/crawl4ai#1298 (an update
that adds 3 GB, and is not installed for it).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import vse_scale
from PIL import Image

from vse_scale.data import decode
from vse_scale.data.decode import image_batches
from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingOptions
from vse_scale.errors import DatasetError
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.retrieval.saved import open_embeddings

ROOT = Path(__file__).parents[2]

# None in a module's place is what Python takes as not installed.
BLOCKED = """
import json, sys
refused = ["deepspeed", "nvidia", "nvidia.dali", "triton", "prometheus_client", "tensorboard",
           "webdataset", "matplotlib"]
sys.modules.update(dict.fromkeys(refused))
from vse_scale.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["vse-scale", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            print(f"{arguments[0]} left with {end.code}", file=sys.stderr)
assert all(sys.modules[name] is None for name in refused)
"""


def without_training(folder: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, json.dumps(commands)],
        capture_output=True, text=True, timeout=600, cwd=folder,
    )  # fmt: skip


def test_commands_that_use_a_model_run(scenes, model_folder, tmp_path):
    model, data = ["--model", str(model_folder)], ["--data", str(scenes), "--split", "val"]
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    done = without_training(
        tmp_path,
        ["embed", *model, *data, "--out", "index"],
        ["search", "--index", "index", "a red circle", "--html", "found.html"],
        ["search", "--index", "index", "--image", "photo.png"],
        ["eval", *model, *data],
        ["eval", "--embeddings", "index"],
        ["export", *model, "--out", "exported"],
        ["recipes", "small"],
        ["train", "--config", "small", f"data.path={scenes}", "run.dir=run", "--dry-run"],
        ["train", "--config", "small", f"data.path={scenes}", "run.dir=run"],
        ["bench", "loader"],
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    left = [line for line in done.stderr.splitlines() if " left with " in line]
    assert left == ["train left with 2", "bench left with 2"], done.stderr
    refusals = [line for line in done.stderr.splitlines() if "error" in line]
    assert refusals == [
        f"vse-scale: error: vse-scale {command} needs deepspeed, nvidia.dali, prometheus_client, "
        "tensorboard, not installed here; pip install 'vse-scale[train]'"
        for command in ("train", "bench")
    ]
    assert not (tmp_path / "run").exists()
    assert done.stderr.count("decoding by Pillow") == 1
    # DALI finds the same, in a process that is as fresh.
    assert vse_scale("embed", *model, *data, "--out", tmp_path / "by_dali").returncode == 0
    saved, by_dali = open_embeddings(tmp_path / "index"), open_embeddings(tmp_path / "by_dali")
    np.testing.assert_allclose(saved.images, by_dali.images, atol=1e-5)
    np.testing.assert_allclose(saved.captions, by_dali.captions, atol=1e-5)


@pytest.fixture
def no_dali(monkeypatch):
    monkeypatch.setattr(decode, "is_installed", lambda module: False)


@pytest.mark.parametrize("antialias", [False, True])
def test_pillow_decodes_as_dali_does(scenes, monkeypatch, antialias):
    dataset = ShardDataset(scenes, "val")
    spec = ImageSpec.preset("imagenet", 56, antialias=antialias)
    rows = [*range(len(dataset)), 3, 0]

    def pixels() -> np.ndarray:
        batches = image_batches(dataset, rows, spec, batch=8, device=torch.device("cpu"), threads=2)
        return np.concatenate([batch.numpy().astype(int) for batch in batches])

    by_dali = pixels()
    monkeypatch.setattr(decode, "is_installed", lambda module: False)
    by_pillow = pixels()
    assert by_pillow.shape == (len(rows), 56, 56, 3)
    assert np.abs(by_dali - by_pillow).max() <= 1


def test_pillow_reads_a_remote_dataset_with_many_threads(scenes, tmp_path, no_dali):
    """A reader that goes from shard to shard lets go of the ones before."""
    spec = ImageSpec.preset("imagenet", 32)

    def pixels(dataset: ShardDataset) -> np.ndarray:
        rows = range(len(dataset))
        batches = image_batches(
            dataset, rows, spec, batch=64, device=torch.device("cpu"), threads=8
        )
        return np.concatenate([batch.numpy() for batch in batches])

    staging = StagingOptions(str(tmp_path / "cache"), ahead=0)
    remote = ShardDataset(scenes.as_uri(), "train", staging)
    assert len(remote.shard_sizes) > 2
    np.testing.assert_array_equal(pixels(remote), pixels(ShardDataset(scenes, "train")))


def test_a_broken_image_is_named(scenes, monkeypatch, no_dali):
    dataset = ShardDataset(scenes, "val")
    whole = dataset.image_bytes

    def damaged(row: int) -> np.ndarray:
        return whole(row)[:100] if row == 2 else whole(row)

    monkeypatch.setattr(dataset, "image_bytes", damaged)
    spec = ImageSpec.preset("imagenet", 32)
    batches = image_batches(
        dataset, [0, 1, 2], spec, batch=2, device=torch.device("cpu"), threads=1
    )
    assert len(next(batches)) == 2
    with pytest.raises(DatasetError) as caught:
        next(batches)
    assert str(caught.value).startswith(dataset.name(2))
    assert "verify --deep" in str(caught.value)


def test_what_is_installed_by_default_trains_nothing():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {line.split(">=")[0] for line in project["dependencies"]}
    training = {line.split(">=")[0] for line in project["optional-dependencies"]["train"]}
    assert not names & training
    assert {"deepspeed", "nvidia-dali-cuda130", "triton"} <= training
    # One command installs all for developers.
    extras = project["optional-dependencies"]
    assert "vse-scale[test]" in extras["dev"]
    assert "train" in extras["test"][0]
