"""Errors of the plan and the datasets name the configuration's keys once a run is set up."""

from __future__ import annotations

import re

import pytest

from vse_scale.config import Config
from vse_scale.errors import UserError
from vse_scale.training.setup import open_data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"global_batch": 512},
            r"data\.global_batch is 512, but an epoch has \d+ pairs, so it would have no step; "
            r"set at most \d+, or data\.last_batch=wrap",
        ),
        (
            {"mode": "images", "captions_per_image": 5, "global_batch": 10},
            r"data\.captions_per_image is 5, but \d+ of 23 images have fewer captions \(the first, "
            r"image \d+, has [34]\); set at most 3, or data\.mode=pairs with 1",
        ),
        (
            {"path": ["{here}", "{here}"], "weights": [1, 1], "shuffle_window": 2},
            r"data\.shuffle_window is 2, which knows no weights; set data\.shuffle_window=0, or "
            r"leave data\.weights out",
        ),
        (
            {"path": ["file://{here}", "file://{here}"], "cache_gb": 3e-4},
            r"data\.cache_gb is 0\.0003, and a shuffle of all shards takes up to 0\.\d of it; "
            r"raise it, or set data\.shuffle_window",
        ),
        (
            {"path": "file://{here}", "cache_dir": "/proc/nowhere"},
            r"/proc/nowhere: cannot hold staged shards: .*; set data\.cache_dir",
        ),
        (
            {"path": "file://{here}", "cache_gb": 1e-6},
            r"file://.*: 3 shards of split 'train' take [\d,]+ bytes, and .* may hold 1,000; raise "
            r"data\.cache_gb",
        ),
    ],
)
def test_a_run_that_its_data_refuses_names_the_key(dataset_folder, tmp_path, data, message):
    raw = {"path": str(dataset_folder), "global_batch": 4, "cache_dir": str(tmp_path)} | data
    filled = {
        key: [v.format(here=dataset_folder) if isinstance(v, str) else v for v in value]
        if isinstance(value, list)
        else value.format(here=dataset_folder)
        if isinstance(value, str)
        else value
        for key, value in raw.items()
    }
    config = Config.model_validate({"data": filled, "run": {"dir": str(tmp_path / "run")}})
    with pytest.raises(UserError) as caught:
        open_data(config, ranks=1)
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


def test_a_dataset_without_regions_names_the_key(dataset_folder, tmp_path):
    config = Config.model_validate(
        {
            "data": {"path": str(dataset_folder), "global_batch": 4},
            "model": {"image": {"backbone": "regions"}},
            "run": {"dir": str(tmp_path)},
        }
    )
    said = "region features; build it with them, or choose a model.image.backbone that takes pixels"
    with pytest.raises(UserError, match=re.escape(said)):
        open_data(config, ranks=1)
