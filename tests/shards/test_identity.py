"""One id is one picture, in every source.

Public reports of people who were hurt: ashnair1/COCO-Assistant#25 and #64 (sets that number their
images alike, merged: images lost), pedropro/TACO#46 and ashnair1/COCO-Assistant#24 (annotation ids
that stand twice), webdataset/webdataset#157 (one key in several tars).
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vse_shards.build import BuildOptions, build
from vse_shards.errors import SourceError
from vse_shards.rows import RowStore
from vse_shards.sources import Caption, Location, Row
from vse_shards.sources.registry import SourceRequest, open_source

PICTURES = ("a/0.jpg", "a/1.jpg", "b/0.jpg", "copy/0.jpg")  # the last has the bytes of the first
CONTENT = {"a/0.jpg": b"zero", "a/1.jpg": b"one", "b/0.jpg": b"other", "copy/0.jpg": b"zero"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def a_row(folder: Path, image_id, name: str, texts, *, partial=False, ids=None, line=1) -> Row:
    captions = tuple(Caption(None if ids is None else ids[k], text) for k, text in enumerate(texts))
    place = Location(str(folder / name))
    return Row("train", image_id, captions, place, f"t.csv line {line}", name, None, partial)


def filled(store: RowStore, rows: list[Row], **options) -> dict[object, tuple[str, list[str]]]:
    """The picture and captions of each id."""
    store.fill(rows, None, **options)
    stored = [one.row for one in store.fetch(store.all_numbers())]
    return {row.image_id: (row.image.path, [c.text for c in row.captions]) for row in stored}


entries = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(PICTURES),
        st.lists(st.sampled_from("uvwxyz"), min_size=1, max_size=3),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(entries)
def test_no_caption_gets_another_images_picture_and_none_is_lost(pictures, tmp_path_factory, drawn):
    rows = [
        a_row(pictures, image_id, name, texts[:1] if one else texts, partial=one, line=n)
        for n, (image_id, name, texts, one) in enumerate(drawn, start=1)
    ]
    truth = defaultdict(set)
    for row in rows:
        truth[row.image_id].add(CONTENT[row.name])
    clashes = any(len(contents) > 1 for contents in truth.values())
    with RowStore(tmp_path_factory.mktemp("store") / "rows") as store:
        if clashes:
            with pytest.raises(SourceError, match="one id is one picture"):
                store.fill(rows, None)
            return
        found = filled(store, rows)
        rejected = [json.loads(line) for line in store.problems()]

    for image_id, (path, texts) in found.items():
        assert {Path(path).read_bytes()} == truth[image_id]
        told = {c.text for row in rows if row.image_id == image_id for c in row.captions}
        assert set(texts) == told
    assert {line["reason"] for line in rejected} <= {"duplicate caption"}
    captions = sum(len(row.captions) for row in rows)
    assert sum(len(texts) for _, texts in found.values()) + len(rejected) == captions


@settings(max_examples=200, deadline=None)
@given(entries)
def test_a_prefix_keeps_what_lies_in_other_folders_apart(pictures, tmp_path_factory, drawn):
    rows = [a_row(pictures, i, name, texts, line=n) for n, (i, name, texts, _) in enumerate(drawn)]
    by_folder = defaultdict(set)
    for row in rows:
        by_folder[row.image_id, row.name.split("/")[0]].add(row.name)
    with RowStore(tmp_path_factory.mktemp("store") / "rows") as store:
        if any(len(names) > 1 for names in by_folder.values()):
            with pytest.raises(SourceError, match="correct the ids in the source"):
                filled(store, rows, prefix_ids=True)
            return
        found = filled(store, rows, prefix_ids=True)
    assert set(found) == {f"t/{folder}/{image_id}" for image_id, folder in by_folder}


def test_a_clash_shows_both_rows_and_its_remedy_works(write_rows, tmp_path, tools, command):
    files = {f"{s}/{n}.jpg": tools.encoded(tools.picture(10 * k + n))
             for k, s in enumerate(("one", "two")) for n in range(2)}  # fmt: skip
    rows = [
        {"image": name, "image_id": n % 2, "captions": [f"words of {name}"], "caption_ids": [n % 2]}
        for n, name in enumerate(files)
    ]
    path = write_rows(rows, files)
    arguments = ["build", "--source", "jsonl", "--input", path, "--out", tmp_path / "out"]
    refused = command(*arguments, "--workers", "1")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == (
        "vse-shards: error: captions.jsonl line 3: image_id 0 is the picture two/0.jpg here and "
        "one/0.jpg in captions.jsonl line 1; one id is one picture: correct the ids, or keep both "
        "with --prefix-ids"
    )
    kept = command(*arguments, "--workers", "1", "--prefix-ids", "--json")
    assert kept.returncode == 0, kept.stderr
    assert json.loads(kept.stdout)["images"] == 4
    again = command(*arguments, "--workers", "1", "--prefix-ids")
    assert again.stderr.splitlines()[-1].startswith("nothing to do: ")


@pytest.mark.parametrize("ids", [[5, 6, 5, 7], [0, 1, 0, 1]], ids=["any", "low"])
def test_a_caption_id_that_stands_twice_is_refused(pictures, tmp_path, ids):
    names = ("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/0.jpg")
    rows = [a_row(pictures, n, names[n], ["w"], ids=[ids[n]], line=n) for n in range(3)]
    with (
        RowStore(tmp_path / "rows") as store,
        pytest.raises(SourceError, match=rf"caption id {ids[0]} stands twice: at a/0\.jpg in t"),
    ):
        store.fill(rows, None)


@pytest.mark.parametrize("start", [0, 1])
def test_ids_that_number_an_images_captions_are_left_alone(pictures, tmp_path, start):
    rows = [
        a_row(pictures, n, name, ["u", "v", "w"], ids=[start, start + 1, start + 2])
        for n, name in enumerate(PICTURES)
    ]
    with RowStore(tmp_path / "rows") as store:
        assert len(filled(store, rows)) == 4


def test_equal_captions_are_counted(pictures, tmp_path):
    captions = [["A  man", "x"], ["a man", "y", "y"], ["x", "a Man"]]
    rows = [a_row(pictures, n, PICTURES[n], texts) for n, texts in enumerate(captions)]
    with RowStore(tmp_path / "rows") as store:
        store.fill(rows, None)
        repeats = store.repeats()
    assert (repeats.kept, repeats.shared, repeats.most, repeats.images) == (1, 5, "A  man", 3)
    assert "'A  man' (3 images)" in repeats.lines()[1]


def test_an_id_in_two_splits_with_other_pictures_names_the_prefix(write_rows, tmp_path, tools):
    files = {f"{s}/0.jpg": tools.encoded(tools.picture(n)) for n, s in enumerate(("train", "val"))}
    rows = [{"image": name, "image_id": 0, "split": name.split("/")[0], "captions": [name]}
            for name in files]  # fmt: skip
    source = open_source("jsonl", SourceRequest(str(write_rows(rows, files))))
    with pytest.raises(SourceError, match=r"1 image is in more .*other|different.*--prefix-ids"):
        build(source, str(tmp_path / "out"), BuildOptions())
    summary = build(source, str(tmp_path / "out"), BuildOptions(prefix_ids=True))
    assert summary.images == 2


def test_ten_thousand_captions_of_one_image_join_in_linear_time(pictures, tmp_path):
    def seconds(count: int) -> float:
        rows = [a_row(pictures, 0, "a/0.jpg", [f"w {n}"], partial=True) for n in range(count)]
        with RowStore(tmp_path / "rows") as store:
            started = time.process_time()
            found = filled(store, rows)
            assert len(found[0][1]) == count
            return time.process_time() - started

    few = min(seconds(2_000) for _ in range(3))
    many = min(seconds(20_000) for _ in range(3))
    assert many < 40 * few  # 100 times as long where it is quadratic


def test_joined_rows_have_the_identity_that_they_had(pictures, tmp_path):
    """The digest of two pairs and of one row of both, written down from the release before."""
    rows = [a_row(pictures, 7, "a/0.jpg", [w], partial=True, line=n) for n, w in enumerate("uv", 2)]
    with RowStore(tmp_path / "rows") as store:
        store.fill(rows, None)
        digest = store.digest()
    assert digest == "6534b435ae479e18f241ff197cff880c662bac5ea17cf34d60e3ae5a900282b5"


def test_coco_files_merged_without_new_ids_are_refused(tmp_path, tools, command):
    """The remedy: the files are built apart, and the datasets merged."""
    parts = []
    for k, name in enumerate(("setA", "setB")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(tools.encoded(tools.picture(k)))
        parts.append({
            "images": [{"id": 0, "file_name": f"{name}/0.jpg"}],
            "annotations": [{"id": 5, "image_id": 0, "caption": f"of {name}"}],
        })  # fmt: skip
    whole = {key: parts[0][key] + parts[1][key] for key in parts[0]}
    arguments = ["--source", "coco", "--images", tmp_path, "--workers", "1"]
    for name, content in (("m", whole), ("a", parts[0]), ("b", parts[1])):
        path = tmp_path / f"captions_{name}.json"
        path.write_text(json.dumps(content))
        out = tmp_path / f"out_{name}"
        result = command("build", *arguments, "--input", path, "--out", out)
        if name == "m":
            assert result.returncode == 2
            assert "image id 0 is both setA/0.jpg and setB/0.jpg" in result.stderr
        else:
            assert result.returncode == 0, result.stderr
    outs = [tmp_path / "out_a", tmp_path / "out_b", "--out", tmp_path / "out"]
    assert "--prefix-ids" in command("merge", *outs).stderr
    assert command("merge", *outs, "--prefix-ids", "--json", "--allow-leaks").returncode == 0
    assert command("verify", tmp_path / "out").returncode == 0


def _tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _webdataset(folder: Path, pictures: dict[str, bytes]) -> Path:
    for name, data in pictures.items():
        described = json.dumps({"image_id": 0, "captions": [name]}).encode()
        _tar(folder / f"t/{Path(name).parent}.tar", {"0.jpg": data, "0.json": described})
    return folder / "t"


def _karpathy(folder: Path, pictures: dict[str, bytes]) -> Path:
    images = [
        {"imgid": 0, "split": "train", "filename": name, "sentences": [{"raw": name, "sentid": k}]}
        for k, name in enumerate(pictures)
    ]
    (folder / "d.json").write_text(json.dumps({"images": images}))
    return folder / "d.json"


def _csv(folder: Path, pictures: dict[str, bytes]) -> Path:
    lines = ["image,image_id,caption", *(f"{name},0,{name}" for name in pictures)]
    (folder / "t.csv").write_text("\n".join(lines))
    return folder / "t.csv"


def _jsonl(folder: Path, pictures: dict[str, bytes]) -> Path:
    lines = [json.dumps({"image": n, "image_id": 0, "captions": [n]}) for n in pictures]
    (folder / "t.jsonl").write_text("\n".join(lines))
    return folder / "t.jsonl"


def _parquet(folder: Path, pictures: dict[str, bytes]) -> Path:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet

    names = list(pictures)
    table = pa.table({"image": names, "image_id": [0] * len(names), "caption": names})
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    return folder / "t.parquet"


LAYOUTS = {
    "csv": _csv,
    "jsonl": _jsonl,
    "karpathy": _karpathy,
    "parquet": _parquet,
    "webdataset": _webdataset,
}


@pytest.mark.parametrize("same", [False, True], ids=["other picture", "same bytes"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_source_has_one_rule(tmp_path, tools, kind, same):
    """Two rows of id 0 in two folders: joined where the bytes are equal, else refused."""
    data = [tools.encoded(tools.picture(0 if same else k)) for k in range(2)]
    pictures = {"one/0.jpg": data[0], "two/0.jpg": data[1]}
    for name, content in pictures.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    path = LAYOUTS[kind](tmp_path, pictures)
    request = SourceRequest(str(path), str(tmp_path) if kind in ("karpathy", "csv") else None)
    out = str(tmp_path / "out")
    if same:
        summary = build(open_source(kind, request), out, BuildOptions())
        assert (summary.images, summary.pairs, summary.rejects) == (1, 2, {})
        return
    with pytest.raises(SourceError, match=r"image_id 0 is .*keep both with --prefix-ids"):
        build(open_source(kind, request), out, BuildOptions())
    summary = build(open_source(kind, request), out, BuildOptions(prefix_ids=True))
    assert (summary.images, summary.pairs, summary.rejects) == (2, 2, {})
