"""Runs that an earlier release began go on as they would have, and its models find what they found.

README.md says how they were made; they are never renewed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import vse_scale
from datasets_made import drawn_numbers, fingerprint, region_dataset, vse_shards
from one_rank import (
    NUMBERS,
    compare_across_machines,
    records,
    this_machine,
    train_on_one_rank,
)
from safetensors import safe_open

from vse_scale import VSEModel
from vse_scale.config import Config

HERE = Path(__file__).parent
STEPS = 24
RUNS = ("pixels", "regions")
# An image is scored once for all its captions since, which adds the same numbers in another order.
ROUNDED_SINCE = {"regions"}


@cache
def expected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / name / "expected.json").read_text())
    return found


def repeats(name: str) -> bool:
    """Return whether the run goes on here bit for bit."""
    return expected(name)["machine"] == this_machine() and name not in ROUNDED_SINCE


@pytest.fixture(scope="module", params=RUNS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def dataset(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset that the run was begun on."""
    folder = tmp_path_factory.mktemp(name)
    built = build_scenes(folder) if name == "pixels" else build_regions(folder)
    assert fingerprint(built) == expected(name)["dataset"], "resuming would refuse this dataset"
    return built


def build_scenes(folder: Path) -> Path:
    # Their files are kept: another release of Pillow or libjpeg would draw others.
    source, out = HERE / "pixels" / "scenes", folder / "shards"
    vse_shards(
        *("build", "--source", "jsonl", "--input", source / "captions.jsonl", "--out", out),
        *("--images", source, "--keep-bytes", "--shard-samples", 10, "--workers", 1),
    )
    return out


def build_regions(folder: Path) -> Path:
    return region_dataset(folder, {"train": 48, "val": 12}, regions=7, channels=12)


@pytest.fixture(scope="module")
def resumed(name: str, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run after the command that began it was given again."""
    folder = tmp_path_factory.mktemp(name) / "run"
    shutil.copytree(HERE / name / "run", folder)
    recipe = HERE / name / "recipe.yaml"
    train_on_one_rank(recipe, f"data.path={dataset}", f"run.dir={folder}")
    return folder


def test_its_steps_are_those_it_would_have_trained(name: str, resumed: Path) -> None:
    before = (HERE / name / "run" / "metrics.jsonl").read_text()
    assert (resumed / "metrics.jsonl").read_text().startswith(before)
    first = before.count("\n")
    found = remaining_steps(resumed, first)
    assert [step["step"] for step in found] == list(range(first, STEPS))
    if repeats(name):
        assert found == expected(name)["steps"]
        assert later_evaluations(resumed, first) == expected(name)["evaluations"]
    else:
        compare_across_machines(found, expected(name)["steps"])


@pytest.mark.slow
def test_its_order_is_kept_where_a_new_run_has_another(
    dataset: Path, name: str, tmp_path: Path
) -> None:
    if name != "regions":
        pytest.skip("one is enough")
    found = {}
    for begun in ("before", "now"):
        folder = tmp_path / begun
        if begun == "before":
            shutil.copytree(HERE / name / "run", folder)
        # As if the split were large: every new order is computed.
        script = "import sys, runpy; from vse_scale.data import plan; plan._FEW = 0; "
        script += "runpy.run_module('vse_scale.training', run_name='__main__', alter_sys=True)"
        train_on_one_rank(
            HERE / name / "recipe.yaml", f"data.path={dataset}", f"run.dir={folder}",
            program=("-c", script),
        )  # fmt: skip
        found[begun] = remaining_steps(folder, 0)
    first = (HERE / name / "run" / "metrics.jsonl").read_text().count("\n")
    compare_across_machines(found["before"][first:], expected(name)["steps"])
    losses = {begun: [step["loss"] for step in steps[:3]] for begun, steps in found.items()}
    assert losses["before"] != losses["now"]


def remaining_steps(folder: Path, first: int) -> list[dict[str, Any]]:
    kept = ("step", "objective", "applied", *NUMBERS)
    steps = records(folder / "metrics.jsonl")
    return [{key: step[key] for key in kept} for step in steps if step["step"] >= first]


def later_evaluations(folder: Path, first: int) -> list[dict[str, Any]]:
    kept = ("step", "rsum", "i2t", "t2i")
    found = records(folder / "evaluations.jsonl")
    return [{key: one[key] for key in kept} for one in found if one["step"] >= first]


def test_its_last_state_is_the_one_it_would_have_reached(name: str, resumed: Path) -> None:
    found = state_digests(resumed)
    wanted: dict[str, str] = expected(name)["state"]
    if repeats(name):
        # By value: a tensor may get another name, and there may be more of them.
        assert sorted(key for key, value in wanted.items() if value not in found.values()) == []
    assert len(found) >= len(wanted)


def state_digests(folder: Path) -> dict[str, str]:
    """Digest each tensor of the newest checkpoint: weights, moments and counts of steps."""
    newest = max((folder / "checkpoints").glob("step-*"))
    digests = {}
    with safe_open(newest / "state.safetensors", framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 -- not a mapping
            value = tensors.get_tensor(key)
            content = f"{value.dtype} {list(value.shape)}".encode() + value.numpy().tobytes()
            digests[key] = hashlib.sha256(content).hexdigest()[:16]
    return digests


def test_its_configuration_is_read(name: str) -> None:
    folder = HERE / name
    overrides = ["data.path=data", "telemetry.prometheus_port=null", "telemetry.tensorboard=false"]
    written = Config.load(folder / "run" / "config.yaml")
    assert written == Config.load(folder / "recipe.yaml", overrides)


def test_its_model_embeds_what_it_embedded(name: str) -> None:
    found, wanted = embedded(name), expected(name)["embedded"]
    for side in ("images", "captions"):
        torch.testing.assert_close(found[side], torch.tensor(wanted[side]), rtol=0, atol=1e-6)


def embedded(name: str) -> dict[str, torch.Tensor]:
    """Embed four images and three captions that need no tokenizer."""
    model = VSEModel.from_pretrained(HERE / name / "run" / "model")
    shape = (4, 3, 32, 32) if name == "pixels" else (4, 7, 12)
    images = torch.from_numpy(drawn_numbers("embedded", shape))
    lengths = None if name == "pixels" else torch.tensor([7, 1, 4, 6])
    ids = torch.tensor([[2, 9, 14, 7, 5, 11, 3], [2, 8, 8, 3, 0, 0, 0], [4, 6, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        return {
            "images": model.encode_images(images, lengths),
            "captions": model.encode_captions(ids, torch.tensor([7, 4, 2])),
        }


def test_its_model_ranks_as_it_ranked(name: str, dataset: Path, tmp_path: Path) -> None:
    assert recalls(name, dataset, tmp_path) == expected(name)["recalls"]


def recalls(name: str, dataset: Path, folder: Path) -> dict[str, Any]:
    out = folder / "recalls.json"
    succeed(
        *("eval", "--model", HERE / name / "run" / "model", "--data", dataset),
        *("--split", "val", "--json", out),
    )
    found = json.loads(out.read_text())
    return {key: found[key] for key in ("rsum", "i2t", "t2i")}


def test_its_report_is_written(resumed: Path, tmp_path: Path) -> None:
    succeed("report", "--run", resumed, "--out", tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000


def succeed(*arguments: str | Path) -> None:
    done = vse_scale(*arguments)
    assert done.returncode == 0, done.stderr[-4000:]
