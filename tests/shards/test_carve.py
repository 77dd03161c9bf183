"""Splits carved out of train by image id."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from vse_shards.build import BuildOptions, build
from vse_shards.carve import Carving, carve
from vse_shards.errors import SourceError
from vse_shards.likeness import look_of
from vse_shards.manifest import Manifest
from vse_shards.rows import RowStore
from vse_shards.sources import Caption, Location, Row
from vse_shards.sources.registry import SourceRequest, open_source


def filled(store, folder, count, *, copies=()):
    """Rows of ids 0 to count - 1; those in ``copies`` have the bytes of id 0."""
    rows = []
    for n in range(count):
        path = folder / f"{n}.jpg"
        path.write_bytes(f"{0 if n in copies else n:06d}".encode() * 2000)
        captions = tuple(Caption(None, f"{k} of {n}") for k in range(2))
        rows.append(Row("train", n, captions, Location(str(path)), f"line {n}", path.name))
    store.fill(rows, None)


def sides(store):
    return {s.row.image_id: s.row.split for s in store.fetch(store.all_numbers())}


def test_shares_are_as_asked_and_stay_when_images_are_added(tmp_path):
    carvings = [Carving("val", 5.0), Carving("test", 10.0)]
    found = []
    for count in (1500, 2000):
        with RowStore(tmp_path / "rows") as store:
            filled(store, tmp_path, count)
            line = carve(store, carvings, "t")
            found.append(sides(store))
            assert store.splits() == {
                name: list(found[-1].values()).count(name) for name in ("test", "train", "val")
            }
    before, after = found
    assert before.items() <= after.items()
    share = {name: list(after.values()).count(name) / 2000 for name in ("val", "test")}
    assert abs(share["val"] - 0.05) < 0.015
    assert abs(share["test"] - 0.10) < 0.02
    assert f"{round(share['val'] * 2000)} to val (5%)" in line


def test_another_share_later_leaves_the_first_alone(tmp_path):
    found = []
    for carvings in ([Carving("val", 5.0)], [Carving("val", 5.0), Carving("test", 5.0)]):
        with RowStore(tmp_path / "rows") as store:
            filled(store, tmp_path, 400)
            carve(store, carvings, "t")
            found.append({n for n, split in sides(store).items() if split == "val"})
    assert found[0] == found[1] != set()


def test_pictures_of_equal_bytes_stay_on_one_side(tmp_path):
    copies = set(range(1, 200, 2))
    with RowStore(tmp_path / "rows") as store:
        filled(store, tmp_path, 200, copies=copies)
        carve(store, [Carving("val", 30.0)], "t")
        found = sides(store)
    assert len({found[n] for n in copies | {0}}) == 1
    assert {found[n] for n in range(2, 200, 2)} == {"train", "val"}


def test_pictures_that_look_alike_stay_on_one_side(write_rows, tmp_path, tools, command):
    """Each picture comes three times, encoded anew and resized, under ids of their own."""
    files = {}
    for n in range(60):
        image = tools.picture(n, 96, 72)
        files[f"{n}.jpg"] = tools.encoded(image, quality=95)
        files[f"copy-{n}.jpg"] = tools.encoded(image, quality=60)
        files[f"small-{n}.png"] = tools.encoded(image.resize((64, 48)), "PNG")
    rows = [{"image": name, "captions": [f"of {name}"]} for name in files]
    source = write_rows(rows, files)
    arguments = ["--source", "jsonl", "--input", source, "--images", source.parent / "images"]
    out = tmp_path / "o"
    result = command("build", *arguments, "--out", out, "--split", "val=30%", "--workers", "2")
    assert result.returncode == 0, result.stderr
    assert "120 look like an earlier one and stay with it" in result.stderr
    found = {}
    for shard in out.glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    described = json.load(tar.extractfile(member))
                    number = described["image_id"].split(".")[0].split("-")[-1]
                    found.setdefault(number, set()).add(shard.name.split("-")[0])
    assert len(found) == 60
    assert all(len(splits) == 1 for splits in found.values())
    assert {"train", "val"} == set.union(*found.values())


def test_an_append_goes_by_the_sides_of_the_dataset(write_rows, tmp_path, tools, command):
    """A new picture like a stored one goes to its split; a stored one stays, whatever its id."""
    images = {f"{n}.jpg": tools.picture(n, 96, 72) for n in range(40)}
    files = {name: tools.encoded(image, quality=95) for name, image in images.items()}
    rows = [{"image": name, "captions": [name]} for name in files]
    out = tmp_path / "o"
    source = write_rows(rows, files)
    arguments = ["--source", "jsonl", "--input", source, "--images", source.parent / "images"]
    assert not command("build", *arguments, "--out", out, "--split", "val=30%").returncode
    sides = Manifest.load(out).splits["val"].images
    more = {
        f"0-{n}.jpg": tools.encoded(image, quality=70) for n, image in enumerate(images.values())
    }
    new = [{"image": name, "captions": [name]} for name in more]
    write_rows([*new, *rows], {**more, **files})  # before those that they are like
    result = command("append", out, *arguments)
    assert result.returncode == 0, result.stderr
    assert "40 of 80 images" in result.stderr
    assert Manifest.load(out).splits["val"].images == 2 * sides


@pytest.mark.parametrize(
    ("splits", "message"),
    [(["val=0%"], "over 0% and under 100%"), (["train=5%"], "becomes another split"),
     (["val=60%", "test=40%"], "take all of train"), (["a/b=5%"], "such as --split val=5%"),
     (["val=0.001%"], "larger percentage"), (["val=5%", "dev=train"], "no split 'train' to carve")],
)  # fmt: skip
def test_a_share_that_cannot_be_is_refused(small_source, tmp_path, command, splits, message):
    flags = [flag for split in splits for flag in ("--split", split)]
    arguments = ["build", "--source", "jsonl", "--input", small_source(6), "--out", tmp_path / "o"]
    flags += [] if "dev=train" in splits else ["--split", "train=train"]
    result = command(*arguments, *flags)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]


def test_a_carved_dataset_is_built_and_resumed(small_source, tmp_path, command, tools):
    path = small_source(60)
    arguments = ["build", "--source", "jsonl", "--input", path, "--out", tmp_path / "o"]
    arguments += ["--split", "train=train,val", "--split", "val=20%", "--workers", "1"]
    first = command(*arguments, "--json")
    assert first.returncode == 0, first.stderr
    manifest = Manifest.load(tmp_path / "o")
    assert json.loads(first.stdout)["images"] == 60
    assert manifest.splits["val"].images > 0
    assert manifest.build["carve"] == [["val", 20.0]]
    before = tools.digests(tmp_path / "o")
    again = command(*arguments)
    assert "nothing to do" in again.stderr
    assert tools.digests(tmp_path / "o") == before


def test_a_split_of_that_name_is_not_added_to(small_source, tmp_path):
    from vse_shards.sources.jsonl import JsonlSource

    options = BuildOptions(carvings=(Carving("val", 10.0),))
    with pytest.raises(SourceError, match="a split 'val' of its own, of 4 images; omit --split"):
        build(JsonlSource(str(small_source(20))), str(tmp_path / "o"), options)


def damaged_avif():
    """A file that Pillow opens, and whose decoder raises RuntimeError."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "AVIF")
    data = file.getvalue()
    start = data.index(b"mdat") + 4
    return data[:start] + bytes(len(data) - start)


def test_carving_passes_over_a_damaged_picture(tmp_path, tools):
    data = damaged_avif()
    with pytest.raises(RuntimeError):
        Image.open(io.BytesIO(data)).load()
    assert look_of(data)["pixels"] == look_of(data)["pixels"] != 0
    files = {f"{n}.jpg": tools.encoded(tools.picture(n)) for n in range(30)}
    files |= {f"{n}.txt": b"words" for n in range(30)} | {"x.avif": data, "x.txt": b"damaged"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    options = BuildOptions(carvings=(Carving("val", 30.0),))
    summary = build(
        open_source("folder", SourceRequest(str(tmp_path))), str(tmp_path / "out"), options
    )
    assert (summary.images, sum(summary.rejects.values())) == (30, 1)
