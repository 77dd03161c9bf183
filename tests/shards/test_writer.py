from __future__ import annotations

import hashlib
import io
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wds2idx import IndexCreator

from vse_shards.errors import DatasetError
from vse_shards.index import Member, format_index, parse_index, read_index
from vse_shards.verify import walk_tar
from vse_shards.writer import ShardWriter, member_header

samples = st.lists(
    st.dictionaries(st.sampled_from(["jpg", "json", "npy"]), st.binary(max_size=1500), min_size=1),
    min_size=1,
    max_size=8,
)


def finished(contents):
    file = io.BytesIO()
    writer = ShardWriter(file)
    for number, members in enumerate(contents):
        writer.add(f"{number:08d}", members)
    return writer.finish(), file.getvalue()


@settings(max_examples=40, deadline=None)
@given(samples)
def test_tarfile_reads_back_what_was_written_and_the_digest_is_right(contents):
    shard, data = finished(contents)

    assert shard.sha256 == hashlib.sha256(data).hexdigest()
    assert shard.bytes == len(data)
    assert len(data) % 10240 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        read = [(m.name, archive.extractfile(m).read()) for m in members]
    assert read == [
        (f"{n:08d}.{extension}", value)
        for n, sample in enumerate(contents)
        for extension, value in sample.items()
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)
    }


NAMES = st.from_regex(r"[0-9A-Za-z_-]{1,104}\.[a-z]{1,4}", fullmatch=True)


@given(NAMES, st.integers(0, 8**11))
def test_a_header_is_the_one_of_tarfile(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    try:
        expected = member.tobuf(tarfile.USTAR_FORMAT)
    except ValueError:  # too long for the format
        with pytest.raises(ValueError):  # noqa: PT011
            member_header(name, size)
        return

    assert member_header(name, size) == expected


@settings(max_examples=15, deadline=None)
@given(samples)
def test_the_index_equals_the_one_of_wds2idx(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("index")
    shard, data = finished(contents)
    (folder / "a.tar").write_bytes(data)
    with IndexCreator(str(folder / "a.tar"), str(folder / "a.idx"), verbose=False) as creator:
        creator.create_index()

    assert shard.index == (folder / "a.idx").read_text()


@settings(max_examples=30, deadline=None)
@given(samples)
def test_the_index_leads_to_the_data(contents):
    shard, data = finished(contents)
    index = parse_index(shard.index, "a.idx")

    assert index.keys == [f"{n:08d}" for n in range(len(contents))]
    for row, sample in enumerate(contents):
        for extension in ("jpg", "json", "npy"):
            assert index.has(extension)[row] == (extension in sample)
            if extension in sample:
                offset, size = index.place(row, extension)
                assert data[offset : offset + size] == sample[extension]
    common = set.intersection(*(set(sample) for sample in contents))
    for extension in common:
        assert index.offset(extension).dtype == np.int64
        assert index.size(extension).tolist() == [len(s[extension]) for s in contents]


@settings(max_examples=30, deadline=None)
@given(samples)
def test_walking_the_tar_gives_its_index(contents):
    shard, data = finished(contents)

    assert format_index(list(walk_tar(io.BytesIO(data)))) == shard.index


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "a b", "ä"])
def test_a_key_that_readers_would_cut_elsewhere_is_refused(key):
    with pytest.raises(ValueError, match="key"):
        ShardWriter(io.BytesIO()).add(key, {"jpg": b"x"})


def test_a_member_that_some_samples_lack_is_named():
    text = format_index([[Member("jpg", 512, 3, "0.jpg")], [Member("npy", 1536, 4, "1.npy")]])

    with pytest.raises(DatasetError, match=r"a\.idx: sample 1 has no \.jpg member \(1 of 2"):
        parse_index(text, "a.idx").offset("jpg")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v1.1 1\njpg 512 3 0.jpg\n",
        "v1.2 x\n",
        "v1.2 2\njpg 512 3 0.jpg\n",
        "v1.2 1\njpg 512 3 0.jpg",
        "v1.2 1\njpg 512 3\n",
        "v1.2 1\njpg 5k12 3 0.jpg\n",
    ],
)
def test_a_damaged_index_is_refused_with_its_name(tmp_path, text):
    path = tmp_path / "train-000000.idx"
    path.write_text(text)

    with pytest.raises(DatasetError, match=r"train-000000\.idx"):
        read_index(path)


def test_a_missing_index_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="index is missing"):
        read_index(tmp_path / "none.idx")


UNLIKE = [
    ["jpg 512 3 a.jpg json 1536 7 a.json", "jpg 2560 4 b.jpg json 3584 9 b.json"],
    ["jpg 512 3 a.jpg json 1536 7 a.json", "json 2560 4 b.json jpg 3584 9 b.jpg"],
    ["jpg 512 3 a.jpg json 1536 7 a.json npy 1 2 a.npy", "jpg 2560 4 b.jpg"],
    ["jpg 512 3 a.jpg jpg 1536 7 a.jpg", "jpg 2560 4 b.jpg jpg 3584 9 b.jpg"],
    ["json 512 3 a.json"],
]


@pytest.mark.parametrize("lines", UNLIKE)
def test_an_index_of_unlike_samples_is_read_as_one_of_like_ones(lines):
    """Columns are read at once where all samples have the same members, else line by line."""
    text = f"v1.2 {len(lines)}\n" + "".join(f"{line}\n" for line in lines)
    index = parse_index(text, "a.idx")
    members = [line.split(" ") for line in lines]
    assert index.keys == [words[3].partition(".")[0] for words in members]
    for extension in {word for words in members for word in words[::4]}:
        for row, words in enumerate(members):
            last = {
                words[i]: (int(words[i + 1]), int(words[i + 2])) for i in range(0, len(words), 4)
            }
            assert index.place(row, extension) == last.get(extension, (-1, -1))
