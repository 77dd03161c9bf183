from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from vse_shards.build import BuildOptions, build
from vse_shards.errors import OutputError
from vse_shards.preview import write_preview
from vse_shards.sources.jsonl import JsonlSource


@pytest.fixture
def dataset(write_rows, tmp_path, tools):
    files = {f"{n}.jpg": tools.encoded(tools.picture(n, 400, 300)) for n in range(6)}
    rows = [{"image": name, "captions": [f"<b>{name}</b> & more"]} for name in files]
    build(JsonlSource(str(write_rows(rows, files))), str(tmp_path / "out"), BuildOptions())
    return tmp_path / "out"


def test_the_page_needs_no_network_and_shows_what_was_chosen(dataset, tmp_path):
    chosen = write_preview(dataset, tmp_path / "page.html", samples=4)["samples"]
    page = (tmp_path / "page.html").read_text()
    HTMLParser().feed(page)

    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in pictures]
    assert sizes == [(320, 240)] * 4
    assert len({sample["image_id"] for sample in chosen}) == 4
    for sample in chosen:
        assert f"&lt;b&gt;{sample['image_id']}&lt;/b&gt; &amp; more" in page
    assert "<b>" not in page


def test_the_seed_chooses_the_samples(dataset, tmp_path):
    chosen = [
        json.dumps(write_preview(dataset, tmp_path / "p.html", samples=3, seed=seed))
        for seed in (0, 0, 1, 2, 3)
    ]

    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1


def test_a_page_that_cannot_be_written_is_one_line(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_preview(dataset, tmp_path / "file/page.html")
