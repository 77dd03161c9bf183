"""The shipped recipes: every one resolves, and trains in its real architecture.

Transformers have three of their twelve layers, which are all alike.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from warm import WarmGroup, vse_scale

from vse_scale.config import Config
from vse_scale.model.towers.resnet import BACKBONES, ResNet
from vse_scale.training.dry_run import describe_run
from vse_shards.build import BuildOptions, build
from vse_shards.sources.jsonl import JsonlSource
from vse_shards.sources.precomp import PrecompSource

RECIPES = Path(__file__).parents[2] / "launch" / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
COCO = [name for name in NAMES if name.startswith("coco_")]
LAYERS = 3
WORKER = Path(__file__).with_name("rank_of_recipes.py")

# Image side, text side and whether the run is the baseline, by the parts of a recipe's name.
IMAGE_SIDES = ("detector", "wsl", "imagenet", "region", "vsepp")
TEXT_SIDES = ("bert", "bigru")
# Our own choices, over a vision transformer.
OURS = ("modern", "clip", "siglip", "lit", "lora", "matryoshka")


def settings(name: str, *keys: str) -> dict[str, Any]:
    """A recipe's resolved settings by dotted key, without ``keys``."""

    def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in nested.items():
            inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
            found |= {prefix + key: value} if inner is None else inner
        return found

    raw = flat(Config.load(RECIPES / f"{name}.yaml").model_dump(mode="json"))
    return {key: value for key, value in raw.items() if key not in keys}


def test_every_published_combination_is_there() -> None:
    expected = {
        f"{data}_{image}_{text}"
        for data in ("coco", "f30k")
        for image in IMAGE_SIDES
        for text in TEXT_SIDES
    }
    assert expected | {"demo", "photos", "small", *OURS} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_resolves_and_says_what_its_checkpoints_need(name: str) -> None:
    config = Config.load(RECIPES / f"{name}.yaml")
    config.check_layout(8)
    if "lora" in name:
        pytest.importorskip("peft", reason="peft is not installed: pip install 'vse-scale[lora]'")
    described = describe_run(config)
    assert "# checkpoints: " in described
    assert Config.load(RECIPES / f"{name}.yaml").run.dir == f"runs/{name}" or name == "small"


def test_what_is_resolved_is_a_configuration_that_reads_back_equal(tmp_path: Path) -> None:
    config = Config.load(RECIPES / "f30k_region_bigru.yaml")
    (tmp_path / "resolved.yaml").write_text(describe_run(config))
    assert Config.load(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize("name", COCO)
def test_flickr30k_differs_from_coco_in_its_data_alone(name: str) -> None:
    places = ("data.path", "run.dir")
    assert settings(name, *places) == settings(name.replace("coco", "f30k"), *places)


@pytest.mark.parametrize("image", IMAGE_SIDES)
def test_bigru_differs_from_bert_in_the_text_side_alone(image: str) -> None:
    bert, bigru = settings(f"coco_{image}_bert"), settings(f"coco_{image}_bigru")
    differing = {key for key in bert.keys() | bigru.keys() if bert.get(key) != bigru.get(key)}
    expected = {"run.dir", "model.text.encoder", "model.text.path", "optim.text_scale"}
    # Settings that one of the two encoders has.
    expected |= {"model.text.vocab_size", "model.text.drop_channels", "model.text.layers"}
    expected |= {"model.text.word_channels", "model.text.min_count"}
    if image in ("region", "vsepp"):
        expected.add("optim.weight_decay")
    assert differing == expected


@pytest.mark.parametrize("text", TEXT_SIDES)
def test_the_baseline_differs_in_its_pooling_alone(text: str) -> None:
    gpo, mean = settings(f"coco_region_{text}"), settings(f"coco_vsepp_{text}")
    assert {key for key in gpo if gpo[key] != mean[key]} == {"run.dir", "model.pool"}


# What the published scripts set (train_grid.sh, train_region.sh, lib/vse.py, lib/datasets).
PUBLISHED = {
    "data.global_batch": 128,
    "data.mode": "pairs",
    "data.crop_scale": [0.6, 1.0],
    "data.flip": 0.5,
    "data.word_drop": 0.2,
    "model.embed_dim": 1024,
    "model.image.size": 512,
    "model.image.antialias": False,
    "objective.margin": 0.2,
    "objective.reduction": "sum",
    "objective.warmup_epochs": 1,
    "optim.lr": 5e-4,
    "optim.drop_epochs": [15],
    "optim.clip": 2.0,
    "train.epochs": 25,
    "train.frozen_backbone_epochs": 1,
    "train.backbone_warmup_epochs": 0,
    "engine.precision": "float32",
}


@pytest.mark.parametrize("name", COCO)
def test_settings_are_those_of_the_published_scripts(name: str) -> None:
    _, image, text = name.split("_")
    regions = image in ("region", "vsepp")
    expected = PUBLISHED | {
        "model.pool": "mean" if image == "vsepp" else "gpo",
        "model.image.pixels": "detector" if image == "detector" else "imagenet",
        "optim.text_scale": 0.1 if text == "bert" else 1.0,
        "optim.weight_decay": 0.01 if regions and text == "bigru" else 1e-4,
        "optim.backbone_scale": 0.1 if image == "imagenet" else 0.01,
        "objective.ramp": not regions,
    }
    found = settings(name)
    if regions:  # there are no pixels to set
        expected = {key: expected[key] for key in expected if not key.startswith("model.image.")}
    assert {key: found[key] for key in expected} == expected


@pytest.mark.slow
def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    recipe = RECIPES / "coco_detector_bigru.yaml"
    out = vse_scale("train", "--dry-run", "--config", recipe, f"run.dir={tmp_path / 'run'}")
    assert out.returncode == 0, out.stderr
    (tmp_path / "resolved.yaml").write_text(out.stdout)
    resolved = Config.load(tmp_path / "resolved.yaml")
    assert resolved == Config.load(recipe, [f"run.dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def workplace(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes' ``data`` and ``weights``: real photos and region features, and
    made-up weights of the real architectures in the layouts in which they are published."""
    folder = tmp_path_factory.mktemp("workplace")
    photos = folder / "photos.jsonl"
    lines = (shared / "data" / "coco_sample" / "captions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:14]]
    splits = ["train"] * 10 + ["val"] * 4
    photos.write_text(
        "".join(json.dumps(r | {"split": s}) + "\n" for r, s in zip(rows, splits, strict=True))
    )
    source = JsonlSource(str(photos), str(shared / "data" / "coco_sample" / "images"))
    build(source, str(folder / "data" / "coco"), BuildOptions())
    build_regions(shared, folder)
    (folder / "data" / "mine").symlink_to(folder / "data" / "coco")
    (folder / "data" / "demo").mkdir()
    (folder / "data" / "demo" / "shards").symlink_to(folder / "data" / "coco")
    make_weights(shared, folder / "weights")
    return folder


def build_regions(shared: Path, folder: Path) -> None:
    """Bottom-up attention's features of ten photos, with made-up captions, in both splits."""
    lists = folder / "lists"
    lists.mkdir()
    names = (shared / "data" / "butd" / "ids.txt").read_text().split()
    features = np.load(shared / "data" / "butd" / "ims.npy")
    kinds = ["man", "dog", "kitchen", "train", "horse", "table", "street", "boat", "cat", "field"]
    ways = ["a {}", "the {} of this photo", "one {} seen by day", "{} in the middle", "some {}s"]
    for split in ("train", "dev"):
        np.save(lists / f"{split}_ims.npy", features)
        ids = [int(name.rsplit("_", 1)[1]) for name in names]
        (lists / f"{split}_ids.txt").write_text("".join(f"{number}\n" for number in ids))
        captions = [way.format(kind) for kind in kinds for way in ways]
        (lists / f"{split}_caps.txt").write_text("".join(f"{text}\n" for text in captions))
    source = PrecompSource(str(lists), use_images=False)
    build(source, str(folder / "data" / "coco_regions"), BuildOptions(allow_leaks=True))


def make_weights(shared: Path, folder: Path) -> None:
    from transformers import AutoModel, BertConfig, BertModel, Dinov2Config

    folder.mkdir()
    torch.manual_seed(0)
    BertModel(BertConfig(num_hidden_layers=LAYERS)).save_pretrained(folder / "bert-base-uncased")
    for file in (shared / "data" / "bert-base-uncased").iterdir():
        if file.name != "config.json":
            (folder / "bert-base-uncased" / file.name).write_bytes(file.read_bytes())
    # The base size is the default.
    dinov2 = Dinov2Config(image_size=518, patch_size=14, num_hidden_layers=LAYERS)
    AutoModel.from_config(dinov2).save_pretrained(folder / "dinov2-base")
    for name, file in (
        ("resnet152_caffe", "resnet152-b121ed2d.pth"),
        ("resnext101_32x8d", "ig_resnext101_32x8-c38310e5.pth"),
    ):
        classifier = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
        torch.save(scaled(name) | classifier, folder / file)
    halves: dict[str, dict[str, torch.Tensor]] = {"base": {}, "top": {}}
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6"}
    for name, value in scaled("detector").items():
        layer, _, rest = name.partition(".")
        half = "base" if layer in numbers else "top"
        halves[half][f"{numbers.get(layer, '0')}.{rest}"] = value
    torch.save(halves, folder / "original_updown_backbone.pth")


def scaled(name: str) -> dict[str, torch.Tensor]:
    """Weights whose residual branches are small, so that activations stay of one size."""
    weights = ResNet(BACKBONES[name]).state_dict()
    return {k: v * 0.1 if k.endswith("bn3.weight") else v for k, v in weights.items()}


def train(workplace: Path, jobs: dict[str, dict[str, Any]], timeout: float) -> dict[str, Any]:
    """Train all ``jobs`` in the same two processes; return what each left."""
    usual = {"first": None, "count": 3, "save": False, "evaluate": False}
    few = ["data.threads=1", "data.prefetch=1", "eval.batch=16", "run.checkpoint_epochs=1"]
    described = [
        usual
        | {**job, "out": str(workplace / f"{name}.json")}
        | {"overrides": [*few, f"run.dir=runs/{name}", *job.get("overrides", [])]}
        for name, job in jobs.items()
    ]
    path = workplace / "jobs.json"
    path.write_text(json.dumps(described))
    run_ranks(2, WORKER, path, timeout=timeout, cwd=workplace, start=WarmGroup)
    return {name: json.loads((workplace / f"{name}.json").read_text()) for name in jobs}


# Every image side, either text side, and what we wrote ourselves; the rest combine these.
PARTS = [f"coco_{image}_bigru" for image in IMAGE_SIDES] + ["coco_region_bert", "demo", "small"]
REST = [name for name in [*COCO, *OURS] if name not in PARTS]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(PARTS, marks=[pytest.mark.slow, pytest.mark.timeout(900)], id="parts"),
        pytest.param(
            ["clip", "siglip"], marks=[pytest.mark.slow, pytest.mark.timeout(900)], id="ours"
        ),
        pytest.param(REST, marks=[pytest.mark.soak, pytest.mark.timeout(1500)], id="rest"),
    ],
)
def test_every_recipe_trains_three_steps_on_two_ranks(workplace: Path, names: list[str]) -> None:
    """From the last step of the first epoch, whose backbone is frozen, into the second.

    Flickr30K's recipes are COCO's with other data, as another test shows.
    """
    few = ["data.global_batch=8", "train.calibration_images=8"]
    names = [name for name in names if name != "lora" or find_spec("peft")]
    # Regions have no size; DINOv2's patches are of 14 pixels.
    regions = [name for name in names if "region" in name or "vsepp" in name]
    size = {key: [] for key in regions} | {name: ["model.image.size=56"] for name in OURS}
    jobs = {
        name: {
            "recipe": str(RECIPES / f"{name}.yaml"),
            "overrides": [*few, *size.get(name, ["model.image.size=64"])],
            "save": name == "small",
        }
        for name in names
    }
    trained = train(workplace, jobs, timeout=1400)
    for name, found in trained.items():
        records = found["records"]
        assert len(records) == 3
        assert all(r["applied"] for r in records), name
        assert all(r["loss"] > 0 for r in records), name
        frozen = [group for group, distance in found["moved"].items() if distance == 0]
        stay = {"lit": ["backbone.1"], "lora": ["text", "backbone.1"]}  # of their first weights
        assert frozen == stay.get(name, []), name
    if "small" not in trained:
        return
    # The estimate before a run, and a checkpoint of it.
    config = Config.load(RECIPES / "small.yaml", ["model.text.tokenizer=none"])
    tokenizer = workplace / "runs" / "small" / "tokenizer"
    exact = Config.load(RECIPES / "small.yaml", [f"model.text.tokenizer={tokenizer}"])
    assert estimated(exact) == pytest.approx(trained["small"]["bytes"], rel=0.02)
    assert estimated(config) > estimated(exact)


def estimated(config: Config) -> float:
    words = describe_run(config).rsplit("# checkpoints: ", 1)[1].split()
    return float(words[0]) * {"MB": 1e6, "GB": 1e9}[words[1]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_baselines_learn_from_real_features_and_evaluate(workplace: Path) -> None:
    learn = [
        "data.global_batch=10", "data.mode=images", "objective.mode=all", "train.epochs=100",
        "model.embed_dim=128", "model.text.min_count=1",
    ]  # fmt: skip
    jobs = {
        f"learn-{name}": {
            "recipe": str(RECIPES / f"{name}.yaml"),
            "overrides": learn,
            "first": 0,
            "count": 60,
            "evaluate": True,
        }
        for name in ("coco_region_bigru", "coco_vsepp_bigru")
    }
    for name, found in train(workplace, jobs, timeout=500).items():
        losses = [record["loss"] for record in found["records"]]
        assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), name
        # Chance is 10 of 100.
        assert min(found["recalls"]) > 40, name
