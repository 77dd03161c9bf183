"""Texts and images that lists and links look for outside the folder, and rows without a text."""

from __future__ import annotations

import json
import tarfile

import pytest

from vse_shards.build import BuildOptions, build
from vse_shards.rows import RowStore
from vse_shards.sources import Caption, Location, Problem, Row
from vse_shards.sources.registry import SourceRequest, open_source

OUTSIDE = BuildOptions(allow_outside=True)


def put(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def listed(path, allow_outside=False):
    """Ids with captions of a list's rows, and reasons with details of its problems."""
    source = open_source("folder", SourceRequest(str(path), allow_outside=allow_outside))
    found = list(source.rows())
    rows = {r.image_id: [c.text for c in r.captions] for r in found if isinstance(r, Row)}
    return rows, [(p.reason, p.detail) for p in found if isinstance(p, Problem)]


def captions_of(folder):
    """The captions of a dataset's samples."""
    texts = []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    described = json.load(tar.extractfile(member))
                    texts += [caption["text"] for caption in described["captions"]]
    return texts


def test_an_image_of_a_list_without_a_text_is_refused_wherever_it_lies(tmp_path, tools):
    put(tmp_path, {f"else/{n}.jpg": tools.encoded(tools.picture(n)) for n in (1, 2)})
    put(tmp_path, {"else/2.txt": b"two"})
    put(tmp_path, {"in/t.txt": f"{tmp_path}/else/1.jpg\n{tmp_path}/else/2.jpg\n".encode()})
    request = SourceRequest(str(tmp_path / "in/t.txt"), allow_outside=True)
    summary = build(open_source("folder", request), str(tmp_path / "out"), OUTSIDE)
    assert summary.rejects == {"no caption": 1}
    assert captions_of(tmp_path / "out") == ["two"]


def test_a_row_whose_captions_are_empty_is_refused(tmp_path):
    """A source of another package may yield one."""
    (tmp_path / "1.jpg").write_bytes(b"1")
    with RowStore(tmp_path / "rows") as store:
        for n, text in enumerate(["", " ", "words"]):
            image = Location(str(tmp_path / "1.jpg"))
            store.fill([Row("train", n, (Caption(None, text),), image, f"line {n}", "1.jpg")], None)
        assert store.splits() == {"train": 1}


@pytest.mark.parametrize("through", ["a list", "a folder"])
def test_a_text_that_is_a_link_out_of_the_folder_is_not_read(through, tmp_path, tools):
    put(tmp_path, {"secret": b"root:x:0:0", "in/a.jpg": tools.encoded(tools.picture(0)),
                   "in/b.jpg": tools.encoded(tools.picture(1)), "in/inner": b"of b"})  # fmt: skip
    (tmp_path / "in/a.txt").symlink_to(tmp_path / "secret")
    (tmp_path / "in/b.txt").symlink_to("inner")
    path = tmp_path / "in"
    if through == "a list":
        path = put(tmp_path, {"in/t.lst.txt": b"a.jpg\nb.jpg\n"}) / "in/t.lst.txt"
    rows, problems = listed(path)
    assert rows == {"b.jpg": ["of b"]}
    assert problems[0] == (
        "outside", "a.txt is a link out of the folder; --allow-outside follows it"
    )  # fmt: skip
    assert listed(path, allow_outside=True)[0] == {"a.jpg": ["root:x:0:0"], "b.jpg": ["of b"]}


def test_texts_of_a_list_lie_as_its_folder_does(tmp_path):
    put(tmp_path, {"images/train/1.jpg": b"1", "captions/train/1.txt": b"one",
                   "images/train/t.txt": b"1.jpg\n"})  # fmt: skip
    assert listed(tmp_path / "images/train/t.txt") == ({"1.jpg": ["one"]}, [])


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/a.jpg", "a::http://127.0.0.1:9/a.jpg"])
def test_an_address_in_a_list_is_not_contacted(name, tmp_path, monkeypatch, tools):
    def contact(url):
        raise AssertionError(f"{url} was contacted")

    monkeypatch.setattr("vse_shards.storage.open_filesystem", contact)
    put(tmp_path, {"t.txt": f"{name}\nb.jpg\n".encode(), "b.txt": b"of b",
                   "b.jpg": tools.encoded(tools.picture(0))})  # fmt: skip
    source = open_source("folder", SourceRequest(str(tmp_path / "t.txt")))
    summary = build(source, str(tmp_path / "out"), BuildOptions())
    assert summary.rejects == {"outside": 1}
    assert captions_of(tmp_path / "out") == ["of b"]


def test_a_protocol_that_is_not_installed_is_a_fault_of_its_row(tmp_path, tools):
    put(tmp_path, {"t.txt": b"nosuch://x/a.jpg\nb.jpg\n", "b.txt": b"of b",
                   "b.jpg": tools.encoded(tools.picture(0))})  # fmt: skip
    request = SourceRequest(str(tmp_path / "t.txt"), allow_outside=True)
    summary = build(open_source("folder", request), str(tmp_path / "out"), OUTSIDE)
    assert summary.rejects == {"unreadable": 1}
