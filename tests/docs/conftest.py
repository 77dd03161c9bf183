"""The folder in which the commands of the documents run: what their reader would have there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import published_files
import pytest
import torch
from commands import record_folder, start
from documents import ROOT, examples
from PIL import Image

from vse_scale.config import ModelConfig
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_shards.build import BuildOptions, build
from vse_shards.sources.jsonl import JsonlSource

COCO_IMAGES = 5000  # the protocols insist


@pytest.fixture(scope="session")
def recorders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where bash may look at commands without starting any."""
    return record_folder(tmp_path_factory.mktemp("recorders"))


@pytest.fixture(scope="module")
def belongings(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """What the documents take as given: photos with captions, two runs, COCO, a published model.

    Everything is tiny: 100 drawn scenes, and towers that learn nothing.
    """
    folder = tmp_path_factory.mktemp("belongings")
    rows = _photos(scenes.parent / "source", folder)
    encoder = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
    trained = start(
        ["-m", "vse_scale.training", "--config", str(ROOT / "launch/recipes/small.yaml"),
         f"data.path={scenes}", "run.dir=runs/other", "train.max_steps=1", "model.embed_dim=24",
         "model.image.size=32", f"model.text.architecture={encoder}"],
        folder,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    (folder / "M").symlink_to(folder / "runs" / "other" / "model")
    _coco(folder, rows)
    _others(folder)
    _published(folder)
    return folder


@pytest.fixture
def workplace(
    belongings: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder of one's own with all that, in place of the repository's folder."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "data").mkdir()
    for name in (
        "captions.jsonl", "data/coco", "data/others", "runs/other", "M", "DIR", "model_best.pth",
        "bert-base-uncased",
    ):  # fmt: skip
        (tmp_path / name).symlink_to(belongings / name)
    shutil.copytree(belongings / "photos", tmp_path / "photos")  # a build follows no link out
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    # What `make demo` and `make photos` leave: a run each, and the scenes that it drew.
    (tmp_path / "runs" / "demo").symlink_to(belongings / "runs" / "other")
    (tmp_path / "runs" / "photos").symlink_to(belongings / "runs" / "other")
    (tmp_path / "data" / "demo").mkdir()
    (tmp_path / "data" / "demo" / "source").symlink_to(scenes.parent / "source")
    for name in ("a", "b"):  # two models' embeddings: there once runs/coco is
        (tmp_path / "runs" / name).symlink_to("coco")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _photos(source: Path, folder: Path) -> list[dict]:
    """Write captions.jsonl: the README's own lines, then more of them."""
    (folder / "photos").mkdir()
    rows = [json.loads(line) for line in (source / "captions.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows, start=1):
        photo = f"photos/{number:04d}.jpg"
        shutil.copy(source / row["image"], folder / photo)
        row["image"] = photo
    (example,) = examples("README.md", "json")
    first = [json.loads(line) for line in example.text.splitlines()]
    assert [row["image"] for row in first] == [row["image"] for row in rows[:2]]
    text = "".join(json.dumps(row) + "\n" for row in (*first, *rows[2:]))
    (folder / "captions.jsonl").write_text(text)
    return rows


def _others(folder: Path) -> None:
    """Write data/others, a dataset whose ids and pictures no other has."""
    lines = []
    for number in range(8):
        colour = Image.new("RGB", (32, 32), (30 * number, 99, 99))
        colour.save(folder / f"colour-{number}.jpg")
        lines.append({"image": f"colour-{number}.jpg", "captions": [f"Colour {number}."]})
    source = folder / "others.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    build(JsonlSource(str(source)), str(folder / "data" / "others"), BuildOptions())


def _coco(folder: Path, rows: list[dict]) -> None:
    """Write data/coco, as large as COCO's test split, and in DIR who else judged its captions.

    Small pictures and captions of two words, since five commands read all of them.
    """
    source, own = folder / "coco.jsonl", []
    for row in rows:
        with Image.open(folder / row["image"]) as photo:
            photo.resize((32, 32)).save(folder / row["image"].replace("photos/", "small-"))
    with source.open("w") as file:
        for image in range(COCO_IMAGES):
            row = rows[image % len(rows)]
            captions = [
                {"id": 5 * image + place, "text": " ".join(text.split()[-2:])}
                for place, text in enumerate(row["captions"])
            ]
            own += [(caption["id"], image) for caption in captions]
            small = row["image"].replace("photos/", "small-")
            line = {"image": small, "image_id": image, "captions": captions, "split": "test"}
            file.write(json.dumps(line) + "\n")
    options = BuildOptions(workers=2)
    build(JsonlSource(str(source), str(folder)), str(folder / "data" / "coco"), options)
    (folder / "DIR").mkdir()
    ratings = {
        "sits": [*own, (0, 1), (5, 2)],
        "sts": [(n, n + 7) for n in range(40)],
        "sis": [(n, n + 3) for n in range(40)],
    }
    for task, pairs in ratings.items():
        lines = [f"{a},{b},{2 + a % 4},c2i_original" for a, b in pairs]
        table = "\n".join(["first,second,agg_score,sampling_method", *lines])
        (folder / "DIR" / f"{task}_test.csv").write_text(table + "\n")
    answers = {
        "image_to_caption": {n: [5 * n, 5 * n + 1] for n in range(20)},
        "caption_to_image": {5 * n: [n, n + 1] for n in range(20)},
    }
    for way, found in answers.items():
        (folder / "DIR" / f"eccv_{way}.json").write_text(json.dumps(found))


def _published(folder: Path) -> None:
    """Write model_best.pth as the published code would, and the tokenizer that it names."""
    tokenizer = CaptionTokenizer.load(folder / "runs" / "other" / "tokenizer")
    tokenizer.save(folder / "bert-base-uncased")
    torch.manual_seed(0)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ModelConfig.model_validate(
        {
            "embed_dim": 24,
            "image": {"backbone": "resnet50", "size": 64},
            "text": {"architecture": {**text, "intermediate_size": 32}},
        }
    )
    model = VSEModel(config, vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id)
    published_files.of_model(
        model, folder / "model_best.pth", backbone_source="imagenet_res50", input_scale_factor=1.0
    )
