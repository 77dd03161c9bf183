"""Tars as people have them: appended, joined, linked, damaged, renamed, and made to do harm.

Layouts after reports of people who lost samples to them, by repository and number; each test of
one names it.
"""

from __future__ import annotations

import json
import os
import random
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest
from archives import link, tar_of

from vse_shards.build import BuildOptions, build
from vse_shards.errors import SourceError
from vse_shards.sources import Problem, Row
from vse_shards.sources.registry import SourceRequest, open_source


def read(path, **request):
    """Rows, problems and notes of a webdataset source."""
    source = open_source("webdataset", SourceRequest(str(path), **request))
    found = list(source.rows())
    rows = [one for one in found if isinstance(one, Row)]
    problems = [(one.key, one.reason) for one in found if isinstance(one, Problem)]
    return rows, problems, source.notes.lines(source.name)


def told(rows):
    """Captions of each row and the bytes of its image."""
    found = {}
    for row in rows:
        with open(row.image.path, "rb") as file:
            file.seek(row.image.offset)
            data = file.read(row.image.size)
        found[row.image_id] = data, [caption.text for caption in row.captions]
    return found


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


PAIRS = [("a.jpg", b"A"), ("a.txt", b"of a"), ("b.jpg", b"B"), ("b.txt", b"of b")]
RIGHT = {"t/a": (b"A", ["of a"]), "t/b": (b"B", ["of b"])}


@pytest.mark.parametrize(
    "order",
    [
        "a.jpg a.txt b.jpg b.txt",
        # webdataset/webdataset#407, ray-project/ray#44068, webdataset/webdataset#140
        "a.jpg b.jpg a.txt b.txt",
        "b.txt a.txt b.jpg a.jpg",
        "a.txt b.jpg b.txt a.jpg",
    ],
)
def test_members_pair_by_key_in_any_order(tmp_path, order):
    members = dict(PAIRS)
    data = tar_of([(name, members[name]) for name in order.split()])
    rows, problems, _ = read(written(tmp_path / "t.tar", data))
    assert told(rows) == RIGHT
    assert [row.image_id for row in rows] == [f"t/{order[0]}", f"t/{'ab'.replace(order[0], '')}"]
    assert problems == []


def test_a_caption_a_line(tmp_path):
    """As huggingface.co/datasets/clip-benchmark/wds_flickr30k has them."""
    data = tar_of([("a.webp", b"A"), ("a.txt", b"one\r\n\n two \nthree")])
    rows, _, notes = read(written(tmp_path / "t.tar", data))
    assert told(rows) == {"t/a": (b"A", ["one", "two", "three"])}
    assert "a .txt of several lines holds several captions, one a line" in notes


def test_one_caption_over_several_lines_is_one_where_the_description_repeats_it(tmp_path):
    """img2dataset writes a page's alternative text, with its line ends, to .txt and .json."""
    text = "a dog\non a hill"
    members = [("a.jpg", b"A"), ("a.txt", text.encode()), ("a.json", json.dumps({"caption": text}))]
    data = tar_of([(n, d if isinstance(d, bytes) else d.encode()) for n, d in members])
    rows, _, _ = read(written(tmp_path / "t.tar", data))
    assert told(rows) == {"t/a": (b"A", [text])}


@pytest.mark.parametrize("apart", [False, True])
def test_a_member_twice_is_a_reject_and_no_pair(tmp_path, apart):
    """webdataset/webdataset#157: names that repeat in a tar, as after tar --append."""
    again = [("a.jpg", b"other"), ("a.txt", b"of another")]
    first = [*PAIRS, *again] if apart else [*PAIRS[:2], *again, *PAIRS[2:]]
    rows, problems, _ = read(written(tmp_path / "t.tar", tar_of(first)))
    assert told(rows) == {"t/b": RIGHT["t/b"]}
    assert problems == [("t/a", "duplicate member")]


def test_joined_tars_are_all_read(tmp_path):
    parts = [tar_of([(f"{n}.jpg", b"%d" % n), (f"{n}.txt", b"of %d" % n)]) for n in range(3)]
    rows, problems, notes = read(written(tmp_path / "t.tar", b"".join(parts)))
    assert told(rows) == {f"t/{n}": (b"%d" % n, [f"of {n}"]) for n in range(3)}
    assert problems == []
    assert "t.tar: is 3 tars, one after the other; all are read" in notes


@pytest.mark.parametrize("kept", [1, 511, 1025])
def test_a_tar_that_is_cut_within_an_end_mark_is_incomplete(tmp_path, kept):
    """Of tars that were joined, the others may be gone."""
    first = tar_of(PAIRS[:2])
    marked = len(first.rstrip(b"\0")) // 512 * 512 + 512
    rows, problems, _ = read(written(tmp_path / "t.tar", first[: marked + kept]))
    assert told(rows) == {"t/a": RIGHT["t/a"]}
    assert problems == [(None, "incomplete tar")]


def test_bytes_after_the_end_are_said(tmp_path):
    data = tar_of(PAIRS) + b"trailing bytes"
    rows, problems, notes = read(written(tmp_path / "t.tar", data))
    assert told(rows) == RIGHT
    assert problems == [(None, "incomplete tar")]
    assert any("what follows its end mark, from byte 10,240, is no tar" in line for line in notes)


def test_a_damaged_header_is_no_silent_end(tmp_path):
    """dusty-nv/jetson-inference#472, where tar says "Skipping to next header"; tarfile is mute."""
    data = bytearray(tar_of(PAIRS))
    data[2 * 1024 + 10] ^= 1  # in the name of b.jpg, which the checksum covers
    rows, problems, notes = read(written(tmp_path / "t.tar", bytes(data)))
    assert told(rows) == {"t/a": RIGHT["t/a"]}
    assert problems == [(None, "incomplete tar")]
    (line,) = [line for line in notes if "damaged" in line]
    assert line == (
        "t.tar: is damaged after 1 keys, and read up to there: "
        "the header at byte 2,048 is damaged: bad checksum"
    )


def test_a_tar_cut_at_any_byte_gives_true_pairs_or_says_so(tmp_path):
    """JoeLeelyf/OVO-Bench#18, StanfordVL/taskonomy#50: downloads that did not end."""
    whole = tar_of(PAIRS)
    for end in [*range(0, 4096, 256), 4096, 4608, 5000]:
        rows, problems, notes = read(written(tmp_path / "t.tar", whole[:end]))
        assert told(rows).items() <= RIGHT.items()
        assert len(rows) == 2 or problems
        assert (
            any("is damaged after" in line for line in notes)
            == bool(problems)
            == (end <= 4096 or end % 512 > 0)
        )


def test_links(tmp_path):
    """Hard links, as tar writes them for files of one store (DVC, rsync --link-dest)."""
    members = [
        *(("./a.jpg", b"A"), ("./a.txt", b"of a")),
        *(link("./b.jpg", "./a.jpg"), ("./b.txt", b"of b")),
        *(link("./c.jpg", "./b.jpg"), link("./c.txt", "./b.txt")),
        *(link("./d.jpg", "../store/d.jpg", tarfile.SYMTYPE), ("./d.txt", b"of d")),
        *(link("./e.jpg", "./e.jpg"), ("./e.txt", b"of itself")),
    ]
    source = open_source(
        "webdataset", SourceRequest(str(written(tmp_path / "t.tar", tar_of(members))))
    )
    found = list(source.rows())
    assert told(one for one in found if isinstance(one, Row)) == {
        "t/./a": (b"A", ["of a"]),
        "t/./b": (b"A", ["of b"]),
        "t/./c": (b"A", ["of b"]),
    }
    assert [(one.key, one.detail[:34]) for one in found if isinstance(one, Problem)] == [
        ("t/./d", "its .jpg is a link to ../store/d.jp"[:34]),
        ("t/./e", "its .jpg is a link to ./e.jpg, whi"),
    ]


def test_dots_in_names(tmp_path):
    """webdataset/webdataset#237, huggingface/datasets#6880, huggingface/datasets#7144."""
    names = ["22.05.png", "22.05.txt", "22.06.png", "22.06.txt"]
    members = [(name, name.encode()) for name in names]
    rows, problems, notes = read(written(tmp_path / "t.tar", tar_of(members)))
    assert told(rows) == {
        "t/22.05": (b"22.05.png", ["22.05.txt"]),
        "t/22.06": (b"22.06.png", ["22.06.txt"]),
    }
    assert problems == []
    assert any(
        "last dot where the first gives no sample: 22.05 is a key in t.tar" in n for n in notes
    )


def test_extensions_of_two_words(tmp_path):
    """``sample.image.jpg`` and ``sample.caption.txt``: keys end at the first dot in webdataset."""
    members = [("1.image.jpg", b"1"), ("1.caption.txt", b"one"),
               ("2.Caption.txt", b"two"), ("2.IMG.JPG", b"2")]  # fmt: skip
    rows, problems, notes = read(written(tmp_path / "t.tar", tar_of(members)))
    assert told(rows) == {"t/1": (b"1", ["one"]), "t/2": (b"2", ["two"])}
    assert problems == []
    assert not any("last dot" in line for line in notes)


def test_numbers_after_a_dot_never_join_two_samples(tmp_path):
    members = [("22.05.jpg", b"5"), ("22.06.txt", b"six")]
    rows, problems, _ = read(written(tmp_path / "t.tar", tar_of(members)))
    assert rows == []
    assert problems == [("t/22.05", "no caption"), ("t/22.06", "caption for no image")]


def test_what_every_sample_has_is_said_once(tmp_path):
    members = [(f"{n}.{k}.png", b"1") for n in range(50) for k in "ab"]
    members += [(f"{n}.{k}.txt", b"one") for n in range(50) for k in "ab"]
    members += [(f"x{n}.{end}", b"1") for n in range(50) for end in ("jpg", "png", "txt")]
    rows, _, notes = read(written(tmp_path / "t.tar", tar_of(members)))
    assert len(rows) == 150
    assert [line for line in notes if "last dot" in line] == [
        "names are divided at their last dot where the first gives no sample: 0.a is a key in "
        "t.tar (the first of several)"
    ]
    assert sum("has several images" in line for line in notes) == 1


def test_further_parts_of_a_sample_are_no_samples(tmp_path):
    """webdataset/webdataset#20: several pictures of one key."""
    data = tar_of([*PAIRS[:2], ("a.seg.png", b"S"), ("a.cls", b"3")])
    rows, problems, _ = read(written(tmp_path / "t.tar", data))
    assert told(rows) == {"t/a": RIGHT["t/a"]}
    assert problems == []


def test_a_dotted_pair_beside_a_plain_one_is_said(tmp_path):
    data = tar_of([*PAIRS[:2], ("a.05.jpg", b"x"), ("a.05.txt", b"y")])
    rows, _, notes = read(written(tmp_path / "t.tar", data))
    assert told(rows) == {"t/a": RIGHT["t/a"]}
    assert any("names such as a.05 belong to key a, as webdataset has it" in line for line in notes)


def test_upper_case_and_leftovers(tmp_path):
    """OpenNeuroOrg/openneuro#2520: the ._ files of macOS."""
    members = [
        *(("._A.JPG", b"\0\5\x16\7"), ("A.JPG", b"A"), ("._A.TXT", b"\0"), ("A.TXT", b"of a")),
        *(("__MACOSX/._A.JPG", b"\0"), (".ipynb_checkpoints/A.JPG", b"x"), ("x/Thumbs.db", b"x")),
        *((".DS_Store", b"x"), ("README", b"x")),
    ]
    rows, problems, notes = read(written(tmp_path / "t.tar", tar_of(members)))
    assert told(rows) == {"t/A": (b"A", ["of a"])}
    assert problems == []
    assert "passed over 6 copies that programs left, the first ._A.JPG" in notes
    assert "passed over 1 members whose names have no key and extension, the first README" in notes


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_of_every_format(tmp_path, format_):
    folder = "/".join(["deep" * 6] * (3 if format_ == tarfile.USTAR_FORMAT else 12))
    members = [(f"{folder}/{name}", data) for name, data in PAIRS]
    if format_ == tarfile.PAX_FORMAT:
        members += [("dör/ü.jpg", b"U"), ("dör/ü.txt", "für".encode())]
    rows, problems, _ = read(written(tmp_path / "t.tar", tar_of(members, format=format_)))
    expected = {f"t/{folder}/a": RIGHT["t/a"], f"t/{folder}/b": RIGHT["t/b"]}
    if format_ == tarfile.PAX_FORMAT:
        expected["t/dör/ü"] = (b"U", ["für"])
    assert told(rows) == expected
    assert problems == []


def header(name="x.jpg", size=0, kind=b"0", raw_size=None):
    """A header, with any bytes in the field of the size, and a true checksum."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if raw_size is not None:
        block[124:136] = raw_size
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)
TERABYTES = b"\x80\0\0\0\0\0\0\x7f\xff\xff\xff\xff"
HARMFUL = {
    "negative size": header(raw_size=b"\xff" * 12) + END,
    "huge size": header(raw_size=b"\x80" + b"\x7f" * 11) + END,
    "huge text": header("x.txt", raw_size=TERABYTES) + END,
    "huge long name": header("x", kind=b"L", raw_size=TERABYTES) + END,
    "long long name": header("x", 2 << 20, b"L") + b"n" * (2 << 20) + header() + END,
    "negative long name": header("x", kind=b"L", raw_size=b"\xff" * 11 + b"\0") + END,
    "chain of long names": (header("x", 4, b"L") + b"name" + bytes(508)) * 3000 + header() + END,
    "chain of pax headers": header("x", 0, b"x") * 3000 + header() + END,
    "pax header of negative length": header("x", 20, b"x") + b"-5 path=x\n".ljust(512, b"\0") + END,
    "pax header of length 0": header("x", 20, b"x") + b"0 path=x\n".ljust(512, b"\0") + END,
    "pax size": header("x", 13, b"x") + b"13 size=-500\n".ljust(512, b"\0") + header() + END,
    "pax size of 1000 digits": header("x", 1011, b"x")
    + (b"1011 size=" + b"9" * 1000 + b"\n").ljust(1024, b"\0") + header() + END,
    "endless sparse map": header("x.jpg", 0, b"S")[:482] + b"\1" + bytes(29) + b"\1" * 5120,
    "cut long name": header("x", 100, b"L") + b"n" * 50,
    "noise": random.Random(0).randbytes(20_000),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMFUL)
def test_harmful_headers_cost_nothing_and_are_one_line(tmp_path, kind):
    path = written(tmp_path / "t.tar", tar_of(PAIRS)[:4096] + HARMFUL[kind])
    tracemalloc.start()
    started = time.process_time()
    rows, problems, notes = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told(rows) == RIGHT
    assert problems == [(None, "incomplete tar")]
    (line,) = [line for line in notes if "damaged after 2 keys" in line]
    assert "\n" not in line
    assert len(line) < 300
    assert time.process_time() - started < 2, "seconds"
    assert peak < 16 << 20, "bytes"


def test_sparse_files_are_named(tmp_path):
    sparse = bytearray(header("c.jpg", 0, b"S"))
    data = tar_of(PAIRS)[:4096] + bytes(sparse) + header("c.txt", 4) + b"of c".ljust(512, b"\0")
    rows, problems, _ = read(written(tmp_path / "t.tar", data + END))
    assert told(rows) == RIGHT
    assert problems == [("t/c", "unreadable")]


JSONS = [
    *("[1, 2]", "3", "null", '"text"', "[" * 100_000, "\xff", "{", "", '{"caption": NaN}'),
    *('{"captions": "\\ud800"}', '{"caption": 1}', '{"captions": [[["x"]]]}'),
    *('{"image_id": {"a": 1}, "caption": "w"}', '{"image_id": ' + "9" * 5000 + "}"),
]


@pytest.mark.parametrize("text", JSONS, ids=range(len(JSONS)))
def test_descriptions_of_other_types_are_rejects(tmp_path, text):
    members = [*PAIRS, ("c.jpg", b"C"), ("c.json", text.encode("latin-1"))]
    rows, problems, _ = read(written(tmp_path / "t.tar", tar_of(members)))
    assert told(rows).items() >= RIGHT.items()
    assert len(rows) == 3 or problems


def shard(folder, name, count, says):
    members = [(f"{n}.{e}", d) for n in range(count) for e, d in (("jpg", b"J"), ("txt", b"w"))]
    if count:
        written(folder / f"{name}.tar", tar_of(members))
    written(folder / f"{name}_stats.json", json.dumps({"successes": says}).encode())


@pytest.mark.parametrize(
    ("count", "says", "message"),
    [
        (2, 3, "has 2 images, 00001_stats.json says 3"),
        (0, 3, "is missing, 00001_stats.json says 3"),
    ],
)
def test_a_shard_of_img2dataset_that_is_not_whole(tmp_path, count, says, message):
    shard(tmp_path, "00000", 2, 2)
    shard(tmp_path, "00001", count, says)
    with pytest.raises(SourceError, match=f"{message}; .* aside with --allow-missing"):
        read(tmp_path)
    rows, problems, notes = read(tmp_path, allow_missing=True)
    assert [row.image_id for row in rows] == ["00000/0", "00000/1"]
    assert problems == [(None, "incomplete tar")]
    assert f"00001.tar: {message}; it is set aside" in notes


def test_folders_in_a_tar_that_are_splits(tmp_path):
    members = [(f"{folder}/{name}", data) for folder in ("train", "val") for name, data in PAIRS]
    members += [("bullet_train/c.jpg", b"C"), ("bullet_train/c.txt", b"of c")]
    rows, _, notes = read(written(tmp_path / "t.tar", tar_of(members)))
    assert [(row.image_id, row.split) for row in rows] == [
        *(("t/train/a", "train"), ("t/train/b", "train")),
        *(("t/val/a", "val"), ("t/val/b", "val"), ("t/bullet_train/c", "train")),
    ]
    assert 'split val: 1 file, the first t.tar ("val" in its folder val)' in notes


def test_a_big_tar_is_read_in_flat_memory(tmp_path):
    """Measured, 100,000 members take 3 MB more than 10,000; tarfile keeps 1 kB a member."""
    peaks = {}
    for samples in (1_000, 11_000):
        path = tmp_path / f"{samples}.tar"
        text = b"a caption of an image, as long as captions are "
        with path.open("wb") as file:
            for n in range(samples):
                file.write(header(f"{n:09d}.jpg", 4) + b"JPEG".ljust(512, b"\0"))
                file.write(header(f"{n:09d}.txt", len(text)) + text.ljust(512, b"\0"))
            file.write(END)
        tracemalloc.start()
        source = open_source("webdataset", SourceRequest(str(path)))
        assert sum(isinstance(one, Row) for one in source.rows()) == samples
        peaks[samples] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[11_000] - peaks[1_000] < 2_000_000, "bytes: 100 a key, and a buffer of 1 MB"


def test_random_tars_with_planted_faults_never_mix_pairs(tmp_path):
    """Members shuffled, repeated, left out, cut, with a byte changed: pairs are true or absent."""
    for seed in range(150):
        draws = random.Random(seed)
        truth = {f"k{n}": (b"J%d" % n, b"of %d" % n) for n in range(6)}
        members = [(f"{k}.jpg", j) for k, (j, _) in truth.items()]
        members += [(f"{k}.txt", t) for k, (_, t) in truth.items()]
        if draws.random() < 0.7:
            members.sort()
        else:
            draws.shuffle(members)
        lost = {
            members.pop(draws.randrange(len(members)))[0][:2] for _ in range(draws.randrange(3))
        }
        if draws.random() < 0.4:
            name, _ = draws.choice(members)
            members.insert(draws.randrange(len(members)), (name, b"of another"))
        data = bytearray(tar_of(members))
        if draws.random() < 0.4:
            at = draws.randrange(len(members)) * 1024 + draws.randrange(140)
            data[at] ^= 1 << draws.randrange(8)
        if draws.random() < 0.3:
            del data[draws.randrange(len(data)) :]
        rows, problems, _ = read(written(tmp_path / "t.tar", bytes(data)))
        found = {key[2:]: value for key, value in told(rows).items()}
        assert {k: (j, [t.decode()]) for k, (j, t) in truth.items()}.items() >= found.items(), seed
        assert found.keys() | lost == truth.keys() or problems, seed


def test_a_build_says_what_it_set_aside(tmp_path, tools):
    data = tools.encoded(tools.picture(1))
    members = [("a.jpg", data), ("a.txt", b"of a"), ("b.jpg", data), ("b.jpg", data)]
    path = written(tmp_path / "in" / "t.tar", tar_of([*members, ("b.txt", b"of b")]))
    source = open_source("webdataset", SourceRequest(str(path)))
    summary = build(source, str(tmp_path / "o"), BuildOptions())
    assert summary.images == 1
    assert summary.rejects == {"duplicate member": 1}
    assert not os.listdir(path.parent)[1:]


@pytest.mark.parametrize("harm", ["cut", "damaged"])
def test_a_tar_that_ends_early_ends_the_build_until_it_is_accepted(tmp_path, tools, harm):
    """Half of a tar is no data set, however few lines of rejects it makes."""
    picture = tools.encoded(tools.picture(1))
    samples = [
        (f"{n}.{s}", picture if s == "jpg" else b"w") for n in range(9) for s in ("jpg", "txt")
    ]
    data = bytearray(tar_of(samples))
    if harm == "damaged":
        data[data.index(b"5.jpg\0") + 148] ^= 1
    written(tmp_path / "in/t.tar", bytes(data if harm == "damaged" else data[: len(data) // 2]))
    out = tmp_path / "out"

    def command(*options):
        source = open_source("webdataset", SourceRequest(str(tmp_path / "in"), **dict(options)))
        return build(source, str(out), BuildOptions(**dict(options)))

    with pytest.raises(SourceError, match=r"1 of its tars cannot be .* t\.tar.*--allow-missing"):
        command()
    assert not (out / "manifest.json").exists()
    summary = command(("allow_missing", True))
    assert 0 < summary.images < 9
    assert summary.rejects == {"incomplete tar": 1}
