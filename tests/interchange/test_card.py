"""Model cards: data, recipe, figures and licenses, read from the card's own Markdown."""

from __future__ import annotations

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from vse_scale.config import Config
from vse_scale.config.recipe import apply_override
from vse_scale.interchange.card import Origin, model_card, origin_of_run
from vse_scale.run.records import EvaluationRecord

FIGURES = {"r1": 61.25, "r5": 83.5, "r10": 91.75, "median_rank": 1.0, "mean_rank": 4.375}
RECALLS = {"i2t": FIGURES, "t2i": {**FIGURES, "r1": 50.0}, "rsum": 461.75}
RESULTS = {"step": 9, "split": "test", **RECALLS}


def rows(card, title):
    """Return the cells of the table below a heading."""
    section = card.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_card_of_a_run(small_model):
    config = {
        "data": {"path": "data/scenes", "split": "train", "global_batch": 64},
        "objective": {"margin": 0.25, "warmup_epochs": 2},
        "optim": {"lr": 0.001},
        "model": {
            "image": {"backbone": "resnet101", "weights": "w/resnext_wsl.pth"},
            "text": {"path": "w/bert-base-uncased"},
        },
    }
    results = EvaluationRecord.from_json(RESULTS)
    origin = origin_of_run(config)
    card = model_card(small_model, name="mine", license="MIT", origin=origin, results=results)
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit"
    assert "Split `train` of the dataset `scenes`." in card
    recipe = {name.strip("`"): json.loads(value) for name, value in rows(card, "Recipe")[2:]}
    assert recipe["data.global_batch"] == 64
    assert recipe["objective.margin"] == 0.25
    assert recipe["optim.lr"] == 0.001
    assert rows(card, "Results") == [
        ["", "R@1", "R@5", "R@10"],
        ["---", "---:", "---:", "---:"],
        ["image to text", "61.2", "83.5", "91.8"],
        ["text to image", "50.0", "83.5", "91.8"],
    ]
    assert "RSUM 461.8" in card
    weights = dict(rows(card, "Weights and their licenses")[2:])
    assert weights["images"].startswith("started from `resnext_wsl.pth`: CC-BY-NC-4.0")
    assert weights["captions"].startswith("started from `bert-base-uncased`: Apache-2.0")
    assert weights["this model"] == "MIT"


def test_figures_are_read_by_the_hubs_own_client(small_model):
    origin = origin_of_run({"data": {"path": ["data/scenes", "data/more"]}})
    results = EvaluationRecord.from_json(RESULTS)
    card = model_card(small_model, name="mine", license="MIT", origin=origin, results=results)
    data = ModelCard(card).data
    assert (data.license, data.library_name) == ("mit", "vse-scale")
    found = {one.metric_name: one for one in data.eval_results}
    assert {name: one.metric_value for name, one in found.items()} == {
        "R@1 image to text": 61.2, "R@5 image to text": 83.5, "R@10 image to text": 91.8,
        "R@1 text to image": 50.0, "R@5 text to image": 83.5, "R@10 text to image": 91.8,
    }  # fmt: skip
    (one,) = {(o.dataset_name, o.dataset_split, o.task_type) for o in found.values()}
    assert one == ("scenes and more", "test", "image-text-retrieval")
    # Without a validation there is nothing to list.
    assert not ModelCard(model_card(small_model, name="mine", origin=origin)).data.eval_results


def recipe_of(small_model, *overrides: str) -> dict[str, object]:
    """Return the table "Recipe" of a whole configuration's card."""
    raw = {"data": {"path": "d"}, "run": {"dir": "r"}}
    for override in overrides:
        apply_override(raw, override)
    origin = origin_of_run(Config.parse(raw).recorded())
    table = rows(model_card(small_model, name="mine", origin=origin), "Recipe")[2:]
    return {name.strip("`"): json.loads(value.replace("\\", "")) for name, value in table}


def test_a_card_lists_the_schedule_that_was_chosen(small_model):
    published = recipe_of(small_model)
    assert published["optim.schedule"] == "steps"
    assert published["optim.drop_epochs"] == [15.0]
    other = {"optim.schedule_epochs", "optim.schedule_steps", "optim.cooldown"}
    assert not other & published.keys()
    cosine = recipe_of(
        small_model, "optim.schedule=cosine", "optim.schedule_epochs=9", "optim.average=0.99",
        "optim.layer_decay=0.8", "optim.decay_norms=false", "optim.warmup_steps=5",
    )  # fmt: skip
    expected = {
        "optim.schedule": "cosine", "optim.schedule_epochs": 9.0, "optim.average": 0.99,
        "optim.layer_decay": 0.8, "optim.decay_norms": False, "optim.warmup_steps": 5,
        "optim.final_factor": 0.0,
    }  # fmt: skip
    assert {key: cosine[key] for key in expected} == expected
    assert not {"optim.drop_epochs", "optim.drop_factor", "optim.cooldown"} & cosine.keys()


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("hinge", {"margin", "mode", "warmup_epochs"}),
        (
            "infonce",
            {"kind", "temperature", "learn_temperature", "label_smoothing", "score_precision"},
        ),
        ("sigmoid", {"kind", "scale", "bias", "learn_scale", "learn_bias", "score_precision"}),
        (
            "hinge+infonce",
            {"kind", "hinge_weight", "infonce_weight", "hinge.margin", "hinge.mode"}
            | {"hinge.warmup_epochs", "infonce.temperature"}
            | {"infonce.learn_temperature", "infonce.label_smoothing", "infonce.score_precision"},
        ),
    ],
)
def test_a_card_lists_what_tells_an_objective(small_model, kind, keys):
    found = recipe_of(small_model, f"objective.kind={kind}")
    given = {key.removeprefix("objective.") for key in found if key.startswith("objective.")}
    assert given == keys
    ignoring = "objective.hinge.ignore_above" if "+" in kind else "objective.ignore_above"
    more = recipe_of(
        small_model, f"objective.kind={kind}", "objective.matryoshka=[4,1024]", f"{ignoring}=0.1"
    )
    assert more["objective.matryoshka"] == [4, 1024]
    assert more[ignoring] == 0.1


def test_a_card_of_several_datasets_and_random_weights(small_model):
    config = {"data": {"path": ["a/coco", "b/photos"], "split": "train"}}
    card = model_card(small_model, name="mine", origin=origin_of_run(config))
    assert "Split `train` of the datasets `coco` and `photos`." in card
    weights = dict(rows(card, "Weights and their licenses")[2:])
    assert weights == {"images": "trained from scratch", "captions": "trained from scratch"}


@pytest.mark.parametrize("missing", ["r10", "t2i", "rsum"])
def test_an_old_run_may_lack_a_figure(small_model, missing):
    results = {key: value for key, value in RESULTS.items() if key != missing}
    results["i2t"] = {key: value for key, value in FIGURES.items() if key != missing}
    card = model_card(small_model, name="mine", results=EvaluationRecord.from_json(results))
    assert ["–" in row for row in rows(card, "Results")].count(True) == (missing == "r10")


def test_a_card_without_a_run_says_so(small_model):
    card = model_card(small_model, name="mine")
    assert card.count("Not recorded.") == 2
    assert "Not evaluated." in card
    assert "license" not in yaml.safe_load(card.split("---")[1])
    assert "all" in dict(rows(card, "Weights and their licenses"))


def test_a_source_of_another_maker_is_asked_for(small_model):
    origin = Origin(sources={"images": "some/vit", "captions": ""})
    weights = dict(
        rows(model_card(small_model, name="m", origin=origin), "Weights and their licenses")
    )
    assert (
        weights["images"]
        == "started from `vit`: not recorded: state it before you pass the model on"
    )


def test_a_card_names_the_towers(small_model):
    shown = dict(rows(model_card(small_model, name="mine"), "Model")[2:])
    config = small_model.config
    assert shown["images"].startswith(f"{config.image.backbone}, {config.image.size} px, RGB")
    most = small_model.input_spec.max_tokens
    assert shown["captions"].endswith(f"layers, 50 token ids, at most {most} each")


def test_parts_of_another_release_are_left_out(small_model):
    config = {
        "data": {"path": "d", "split": "train"},
        "objective": {"kind": "from elsewhere", "margin": 1},
        "model": {"image": {"backbone": "from elsewhere"}, "text": {"path": "w/bert-large"}},
    }
    card = model_card(small_model, name="mine", origin=origin_of_run(config))
    assert "objective." not in card
    weights = dict(rows(card, "Weights and their licenses")[2:])
    assert list(weights) == ["captions"]
    assert "Apache-2.0" in weights["captions"]


def test_what_others_wrote_becomes_no_part_of_the_page():
    from vse_scale.interchange.card import _code, text

    hostile = (
        "<script>alert(1)</script>\n# A heading\n| a | b |\n[link](javascript:x) `code`\x1b[2J"
    )
    shown = text(hostile)
    assert "<script" not in shown
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert "\\|" in shown
    assert "\\# A heading" in shown
    assert len(text("x" * 500)) == 80
    assert text("Flickr30K, epoch 3") == "Flickr30K, epoch 3"
    for character in "`|\n":
        assert character not in _code(hostile)[1:-1]
