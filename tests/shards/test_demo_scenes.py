from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from vse_shards.build import BuildOptions, build
from vse_shards.demo import COLOURS, make_demo, make_scenes
from vse_shards.errors import OutputError
from vse_shards.sources.jsonl import JsonlSource


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, tools):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_demo(tmp_path / name, images=12, seed=seed)
    a, b, c = (tools.digests(tmp_path / name / "images") for name in "abc")

    assert a == b
    assert not set(a.values()) & set(c.values())
    rows = [(tmp_path / name / "captions.jsonl").read_text() for name in "abc"]
    assert rows[0] == rows[1] != rows[2]


def test_a_longer_set_begins_with_the_shorter():
    assert make_scenes(30, seed=1)[:10] == make_scenes(10, seed=1)


def test_no_two_scenes_hold_the_same_objects():
    scenes = make_scenes(3500, seed=0)

    assert len({frozenset(scene.things) for scene in scenes}) == 3500
    assert {len(scene.things) for scene in scenes} == {2, 3}


def test_five_different_captions_each_name_every_object_and_its_place():
    for scene in make_scenes(200, seed=2):
        assert len(set(scene.captions)) == 5
        for caption in scene.captions:
            for thing in scene.things:
                assert thing.noun in caption
                assert thing.corner in caption


def test_an_object_has_its_colour_at_its_place(tmp_path):
    make_demo(tmp_path / "demo", images=60)
    for number, scene in enumerate(make_scenes(60, seed=0)):
        image = Image.open(tmp_path / f"demo/images/{number:06d}.jpg")
        pixels = np.asarray(image.resize((96, 96)), np.float64)
        assert max(image.size) <= 176
        assert min(image.size) >= 112 / 1.2
        for thing in scene.things:
            row, column = (slice(48 * k, 48 * k + 48) for k in thing.place)
            distance = np.linalg.norm(pixels[row, column] - COLOURS[thing.colour], axis=-1)
            assert (distance < 60).sum() >= 50, (number, thing)


def test_the_last_scenes_are_the_validation_split_and_it_builds(tmp_path):
    make_demo(tmp_path / "demo", images=30)
    rows = [json.loads(line) for line in (tmp_path / "demo/captions.jsonl").open()]

    assert [row["split"] for row in rows] == ["train"] * 24 + ["val"] * 6
    summary = build(
        JsonlSource(str(tmp_path / "demo/captions.jsonl")), str(tmp_path / "out"), BuildOptions()
    )
    assert (summary.images, summary.untouched, summary.rejects) == (30, 30, {})


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(OutputError, match=r"contains other files \(notes\.txt\)"):
        make_demo(tmp_path, images=2)


def test_images_are_jpegs_of_varying_size(tmp_path):
    make_demo(tmp_path / "demo", images=20)
    sizes = {
        Image.open(io.BytesIO(path.read_bytes())).size
        for path in (tmp_path / "demo/images").iterdir()
    }

    assert len(sizes) > 10
