"""The card of a dataset, as Hugging Face's ``datasets`` reads it.

Without ``configs:`` it reads whatever it takes for data (huggingface/datasets#6777), here the JSON
records beside the shards.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image

from vse_shards.build import BuildOptions, build
from vse_shards.errors import OutputError
from vse_shards.manifest import Manifest
from vse_shards.sources.jsonl import JsonlSource
from vse_shards.verify import verify


@pytest.fixture
def built(write_rows, tools, tmp_path):
    """Six images of splits train, train-dev and val, in two shards each of train."""
    files = {f"{n}.jpg": tools.encoded(tools.picture(n)) for n in range(6)}
    splits = ["train"] * 3 + ["train-dev", "val", "val"]
    rows = [
        {"image": name, "captions": [f"first of {name}", f"second of {name}"], "split": split}
        for name, split in zip(files, splits, strict=True)
    ]

    def run(out="out", **options):
        source = JsonlSource(str(write_rows(rows, files)), str(tmp_path / "source/images"))
        build(source, str(tmp_path / out), BuildOptions(shard_samples=2, **options))
        return tmp_path / out

    return run


def test_datasets_reads_images_and_captions(built, tmp_path, monkeypatch, tools):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    folder = built()
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    rows = {row["json"]["image_id"]: row for part in found.values() for row in part}
    sizes = {split: len(part) for split, part in found.items()}
    assert sizes == {"train": 3, "train_dev": 1, "val": 2}
    for n in range(6):
        row = rows[f"{n}.jpg"]
        texts = [caption["text"] for caption in row["json"]["captions"]]
        assert texts == [f"first of {n}.jpg", f"second of {n}.jpg"]
        stored = Image.open(io.BytesIO(tools.encoded(tools.picture(n))))
        assert np.array_equal(np.asarray(row["jpg"]), np.asarray(stored))


def test_the_fingerprint_is_that_of_a_dataset_without_a_card(built, command):
    folder = built()
    fingerprint = Manifest.load(folder).fingerprint
    card = (folder / "README.md").read_bytes()
    assert verify(folder, deep=True) == []
    (folder / "README.md").unlink()  # as of an earlier version
    assert Manifest.load(folder).fingerprint == fingerprint
    assert verify(folder, deep=True) == []
    built()
    assert (folder / "README.md").read_bytes() == card


def test_a_card_of_another_dataset_is_found_and_mended_by_the_same_build(built):
    folder = built()
    card = folder / "README.md"
    right = card.read_text()
    card.write_text(right.replace("val-", "test-"))
    (problem,) = verify(folder)
    assert "run the last vse-shards command that wrote there" in problem
    built()
    assert card.read_text() == right
    assert verify(folder) == []


def test_a_text_of_the_owner_stays(built, capsys):
    folder = built()
    (folder / "README.md").write_text("# Ours\n")
    built(overwrite=True, seed=3)
    assert (folder / "README.md").read_text() == "# Ours\n"
    said = "README.md is not of vse-shards, and stays; datasets.load_dataset reads the splits"
    listed = "`configs:` in it lists: it should list train, train_dev, val"
    for _ in ("in its place", "in place"):
        (line,) = [line for line in capsys.readouterr().err.splitlines() if said in line]
        assert listed in line
        built(seed=3)
    assert verify(folder) == []


@pytest.mark.parametrize("split", ["2014", "no", "1_000", "null", "0x_", "1e3", "train"])
def test_a_split_is_a_text_whatever_yaml_takes_its_name_for(split, write_rows, tools, tmp_path):
    """Hugging Face's loader left out, or refused, splits that are no texts."""
    rows = [{"image": "1.jpg", "captions": ["words"], "split": split}]
    source = JsonlSource(str(write_rows(rows, {"1.jpg": tools.encoded(tools.picture(1))})))
    build(source, str(tmp_path / "out"), BuildOptions())
    card = (tmp_path / "out/README.md").read_text()
    (found,) = yaml.safe_load(card.split("---")[1])["configs"][0]["data_files"]
    assert found == {"split": split, "path": f"{split}-[0-9][0-9][0-9][0-9][0-9][0-9].tar"}
    assert verify(tmp_path / "out") == []


def test_a_folder_with_another_readme_is_not_written_to(built, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project/README.md").write_text("# A project\n")
    with pytest.raises(OutputError, match=r"contains other files \(README\.md\)"):
        built("project", overwrite=True)


def test_append_and_merge_bring_the_card_along(built, tmp_path, command, tools):
    folder = built()
    other = tmp_path / "other"
    other.mkdir()
    (other / "new.jpg").write_bytes(tools.encoded(tools.picture(99)))
    row = {"image": "new.jpg", "captions": ["new"], "split": "test"}
    (other / "c.jsonl").write_text(json.dumps(row))
    source = ("--source", "jsonl", "--input", other / "c.jsonl")
    assert command("append", folder, *source).returncode == 0
    card = (folder / "README.md").read_text()
    assert "- split: test\n" in card
    (folder / "README.md").write_text(card.replace("test-", "other-"))
    assert len(verify(folder)) == 1
    assert command("append", folder, *source).returncode == 0  # as the line says
    assert (folder / "README.md").read_text() == card
    assert command("build", *source, "--out", tmp_path / "b", "--prefix-ids").returncode == 0
    merged = command("merge", built("a"), tmp_path / "b", "--out", tmp_path / "c")
    assert merged.returncode == 0, merged.stderr
    assert "- split: test\n" in (tmp_path / "c/README.md").read_text()
    assert verify(tmp_path / "c") == []
    assert verify(folder) == []
