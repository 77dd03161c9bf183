"""Reports of runs that release 0.1.0 made say the same of their parts as that release said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vse_scale.report import headline
from vse_scale.run.folder import RunRecords

RUNS = Path(__file__).parents[1] / "old_runs"


def facts(run: RunRecords) -> dict[str, str]:
    found = re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", headline.of_run(run))
    return dict(found)


@pytest.mark.parametrize(
    ("kind", "images", "text"),
    [("pixels", "resnet, 32 px", "BERT of 1 layers"), ("regions", "region features", "BiGRU")],
)
def test_an_old_run_names_its_towers(kind, images, text):
    run = RunRecords.load(RUNS / kind / "run")
    assert facts(run) == {"trained on": "data", "images by": images, "text by": text}


@pytest.mark.parametrize(
    ("model", "images", "text"),
    [
        ({"image": {"backbone": "resnet152", "size": 512}, "text": {"path": "w/bert-base"}},
         "resnet152, 512 px", "bert-base"),
        ({"image": {"backbone": "huggingface", "path": "w/vit-b16", "size": 224},
          "text": {"architecture": {"model_type": "roberta", "num_hidden_layers": 2}}},
         "vit-b16, 224 px", "roberta of 2 layers"),
        ({"image": {"backbone": "regions", "size": 512}, "text": {"encoder": "bigru"}},
         "region features", "BiGRU"),
    ],
)  # fmt: skip
def test_recorded_settings_name_the_towers(tmp_path, model, images, text):
    run = RunRecords.load(tmp_path)
    run.config.update({"data": {"path": "d"}, "model": model})
    assert facts(run) == {"trained on": "d", "images by": images, "text by": text}


def test_a_run_without_a_configuration_names_none(tmp_path):
    assert facts(RunRecords.load(tmp_path)) == {}


def test_a_part_of_another_release_is_named_as_recorded(tmp_path):
    run = RunRecords.load(tmp_path)
    run.config.update({"model": {"image": {"backbone": "mine:Tower", "depth": 3}, "text": {}}})
    assert facts(run) == {"images by": "mine:Tower", "text by": "BERT"}
