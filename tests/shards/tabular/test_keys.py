"""Captions under other keys of a sample's .json, as recaptioned shards have them."""

from __future__ import annotations

import json

import pytest
from archives import tar_of

from vse_shards.errors import SourceError


def sample(description, tools, text=None):
    """A tar of one sample."""
    members = {"0.jpg": tools.encoded(tools.picture(1)), "0.json": json.dumps(description).encode()}
    return tar_of(members if text is None else members | {"0.txt": text.encode()})


RECAPTIONED = {"caption": "IMG_2034.JPG", "caption_llava": "A dog runs.", "alt": ["x", "y"]}


@pytest.mark.parametrize(
    ("key", "captions"),
    [
        (None, ["IMG_2034.JPG"]),
        ("caption_llava", ["A dog runs."]),
        ("alt", ["x", "y"]),
        ("caption_llava,alt", ["A dog runs.", "x", "y"]),
    ],
)
def test_the_caption_is_chosen_by_its_key(put, read, tools, key, captions):
    path = put("00000.tar", sample(RECAPTIONED, tools, "IMG_2034.JPG"))
    columns = {} if key is None else {"caption": key}

    assert read("webdataset", path, columns=columns).captions == {"00000/0": captions}


@pytest.mark.parametrize(
    ("description", "captions"),
    [
        ({"caption": ["one", "two", "three"]}, ["one", "two", "three"]),
        ({"sentences": ["one", "two"], "prompt": "p"}, ["one", "two"]),
        ({"caption": "['one', 'two']"}, ["one", "two"]),
        ({"conversations": [{"from": "gpt", "value": "one"}]}, ["one"]),
    ],
)
def test_lists_and_other_names_are_read(put, read, tools, description, captions):
    path = put("00000.tar", sample(description, tools))

    assert read("webdataset", path).captions == {"00000/0": captions}


def test_keys_and_names_that_are_not_there_are_errors(put, read, tools):
    path = put("00000.tar", sample(RECAPTIONED, tools, "x"))
    with pytest.raises(SourceError, match=r"no column 'llava'; it has caption, caption_llava"):
        read("webdataset", path, columns={"caption": "llava"})
    with pytest.raises(SourceError, match="webdataset takes --column caption=KEY alone"):
        read("webdataset", path, columns={"image": "jpg"})


def test_a_cut_list_is_a_malformed_row(put, read, tools):
    found = read("webdataset", put("00000.tar", sample({"caption": '["one", "tw'}, tools)))

    assert found.rows == []
    assert [problem.reason for problem in found.problems] == ["malformed row"]
