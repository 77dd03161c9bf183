"""The same rows in every format, and what is refused or said about each."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from typing import Any

import pyarrow
import pytest
from archives import zip_of
from pyarrow import parquet

from vse_shards import storage
from vse_shards.build import BuildOptions, build
from vse_shards.errors import SourceError
from vse_shards.manifest import Manifest
from vse_shards.sources.registry import SourceRequest, open_source

PAIRS = [("0.jpg", "one"), ("1.jpg", "two"), ("0.jpg", "three")]
JOINED = {"0.jpg": ["one", "three"], "1.jpg": ["two"]}


def as_parquet(columns: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def as_text(delimiter: str) -> Callable[[list[dict[str, str]]], bytes]:
    def write(rows: list[dict[str, str]]) -> bytes:
        lines = [delimiter.join(rows[0]), *(delimiter.join(row.values()) for row in rows)]
        return "".join(f"{line}\n" for line in lines).encode()

    return write


FORMATS: dict[str, Callable[[list[dict[str, str]]], bytes]] = {
    "csv": as_text(","),
    "tsv": as_text("\t"),
    "jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "json": lambda rows: json.dumps(rows).encode(),
    "parquet": lambda rows: as_parquet({key: [row[key] for row in rows] for key in rows[0]}),
}


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zip": lambda data: zip_of({"inner": data}),
    ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_joins_captions_through_every_compression(put, read, kind, packer):
    rows = [{"file_name": image, "text": text} for image, text in PAIRS]
    path = put(f"metadata.{kind}{packer}", PACKERS[packer](FORMATS[kind](rows)))
    found = read(kind, path)

    assert found.captions == JOINED
    assert found.problems == []
    assert "image from file_name; caption from text" in found.notes


@pytest.mark.parametrize("given", FORMATS)
@pytest.mark.parametrize("named", ["csv", "jsonl", "json", "parquet"])
def test_a_file_of_another_format_than_asked_for_is_read_and_said(put, read, named, given):
    rows = [{"image": image, "caption": text} for image, text in PAIRS]
    found = read(named, put("t", FORMATS[given](rows)))
    assert found.captions == JOINED
    family = {"csv": "text", "tsv": "text", "jsonl": "JSON lines", "json": "a JSON list"}
    said = {
        "csv": ("csv", "tsv"),
        "json": ("json", "jsonl"),
        "jsonl": ("jsonl",),
        "parquet": ("parquet",),
    }
    if given not in said[named]:
        assert f"t is {family.get(given, 'Parquet')}" in found.notes


@pytest.mark.parametrize("kind", FORMATS)
def test_folders_and_patterns_of_files(put, read, tmp_path, kind):
    for split in ("train", "validation"):
        for shard in range(2):
            rows = [{"image": f"{split}{shard}.jpg", "caption": f"{split} {shard}"}]
            put(f"data/{split}-{shard:05d}-of-00002.{kind}", FORMATS[kind](rows))
    put(f"data/._train.{kind}", b"of macOS")
    whole = read(kind, tmp_path / "data")
    part = read(kind, tmp_path / "data" / f"valid*.{kind}")

    assert [row.split for row in whole.rows] == ["train"] * 2 + ["validation"] * 2
    assert list(part.captions) == ["validation0.jpg", "validation1.jpg"]
    assert "split validation: 2 files" in whole.notes
    with pytest.raises(SourceError, match="no file matches; check the path"):
        read(kind, tmp_path / "data" / f"none*.{kind}")


def test_ids_of_tables_in_several_folders_do_not_meet(put, read, tmp_path):
    for split in ("train", "test"):
        put(f"{split}/0.jpg", split)
        put(f"{split}/metadata.csv", f"file_name,text\n0.jpg,of {split}\n")
    found = read("csv", tmp_path)

    assert found.captions == {"test/0.jpg": ["of test"], "train/0.jpg": ["of train"]}
    assert [row.image.path for row in found.rows] == [
        str(tmp_path / "test/0.jpg"),
        str(tmp_path / "train/0.jpg"),
    ]


# Columns


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("given", ["first,second", {"caption": "first,second"}])
def test_captions_of_several_columns(put, read, kind, given):
    columns = {"pic": "0.jpg", "first": "a", "second": "b"}
    named = {"image": "pic", "captions": "first,second"}
    path = put(f"t.{kind}", FORMATS[kind]([columns, {**columns, "pic": "1.jpg", "second": ""}]))

    assert read(kind, path, columns=named).captions == {"0.jpg": ["a", "b"], "1.jpg": ["a"]}


@pytest.mark.parametrize("kind", FORMATS)
def test_names_and_columns_that_are_not_there_are_errors(put, read, kind):
    path = put(f"t.{kind}", FORMATS[kind]([{"file_name": "0.jpg", "text": "a"}]))
    with pytest.raises(SourceError, match="'imge' is not a known column; choose from image, cap"):
        read(kind, path, columns={"imge": "file_name"})
    with pytest.raises(SourceError, match=r"no column 'txt'; did you mean 'text'.* It has file_na"):
        read(kind, path, columns={"caption": "txt"})
    with pytest.raises(SourceError, match="only captions and their ids can be in several"):
        read(kind, path, columns={"image": "file_name,text"})


def test_the_command_joins_repeated_columns(put, command, tools, tmp_path):
    put("a.jpg", tools.encoded(tools.picture(1)))
    path = put("t.csv", "image,short,long\na.jpg,x,y\n")
    ended = command(
        "build", "--source", "csv", "--input", path, "--out", tmp_path / "o",
        "--column", "caption=short", "--column", "caption=long",
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    assert Manifest.load(tmp_path / "o").splits["train"].pairs == 2


def test_a_key_that_few_rows_have_can_be_named(put, read):
    rows = [{"image": f"{n}.jpg", "caption": "w"} for n in range(5)]
    rows[3]["fold"] = "val"
    path = put("t.jsonl", FORMATS["jsonl"](rows))

    assert [r.split for r in read("jsonl", path, columns={"split": "fold"}).rows].count("val") == 1


# Cells


LISTS = [
    ('["a, b", "c"]', ["a, b", "c"]),
    ("['a', \"b's\"]", ["a", "b's"]),
    ("['a' 'b']", ["a", "b"]),
    ("['a'\n 'b']", ["a", "b"]),
    ('[{"raw": "a", "sentid": 7}]', ["a"]),
    ("[cat] on a mat", ["[cat] on a mat"]),
    ('["Untitled"], oil on canvas', ['["Untitled"], oil on canvas']),
    ("[1932]", ["[1932]"]),
]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(("cell", "captions"), LISTS)
def test_cells_that_hold_lists(put, read, kind, cell, captions):
    if kind == "csv":
        quoted = cell.replace('"', '""')
        path = put("t.csv", f'image,caption\n0.jpg,"{quoted}"\n')
    else:
        path = put(f"t.{kind}", FORMATS[kind]([{"image": "0.jpg", "caption": cell}]))

    assert read(kind, path).captions == {"0.jpg": captions}


@pytest.mark.parametrize("ids", ["[5, 6]", "[5 6]", "['5', '6']"])
def test_lists_of_ids(put, read, ids):
    path = put("t.csv", f'image,raw,sentids\n0.jpg,"[""a"", ""b""]","{ids}"\n')

    assert [int(i) for i in read("csv", path).ids()] == [5, 6]


def test_a_list_that_was_cut_is_no_caption(put, read):
    """A cell of Excel ends after 32,767 characters."""
    text = put("t.csv", 'image,caption\n0.jpg,"[""a"", ""b"\n1.jpg,whole\n')
    lines = put("t.jsonl", json.dumps({"image": "0.jpg", "caption": '["a", "b'}))
    for kind, path in (("csv", text), ("jsonl", lines)):
        ((reason, detail),) = read(kind, path).reasons
        assert reason == "malformed row"
        assert "begins as a list and is none; was it cut" in detail


def test_ids_that_pandas_made_floats_and_nan(put, read):
    nan = float("nan")
    table = {"image": ["a.jpg", "b.jpg"], "caption": ["x", "y"], "image_id": [12.0, nan]}
    assert list(read("parquet", put("t.parquet", as_parquet(table))).captions) == [12, "b.jpg"]
    rows = '{"image": "a.jpg", "caption": "x", "image_id": NaN}\n'
    assert list(read("jsonl", put("t.jsonl", rows)).captions) == ["a.jpg"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"image": "a.jpg", "caption": "x", "image_id": true}', "malformed row"),
        ('{"image": "a.jpg", "caption": "x", "image_id": %s}' % ("9" * 5000), "malformed row"),
        ('{"image": "a.jpg", "caption": "x", "image_id": 1e400}', "malformed row"),
        ('{"image": "a.jpg", "caption": "\\ud800"}', "malformed caption"),
        ('{"image": "a.jpg\\ud800", "caption": "x"}', "malformed row"),
        ('{"image": "a.jpg", "caption": {"text": {"text": "x"}}}', "malformed caption"),
        ('{"image": ["a.jpg", "b.jpg"], "caption": "x"}', "malformed row"),
        ('{"image": {"path": null, "bytes": null}, "caption": "x"}', "malformed row"),
        ('{"image": "a.jpg", "caption": %s}' % ("[" * 100_000), "malformed row"),
        ('{"image": "a.jpg", "caption": "x", "caption_id": [[1]]}', "malformed caption"),
    ],
)
def test_limits_of_json_are_problems_of_a_row(put, read, line, reason):
    good = '{"image": "b.jpg", "caption": "x"}'
    found = read("jsonl", put("t.jsonl", f"{good}\n{line}\n"))

    assert found.reasons[0][0] == reason
    assert all(len(detail) < 200 for _, detail in found.reasons)
    assert list(found.captions) == ["b.jpg"]
    listed = put("t.json", f"[{good},\n{line}]")
    try:
        assert read("json", listed).reasons[0][0] == reason
    except SourceError as error:  # what is not JSON ends a list
        (said,) = error.args
    else:
        return
    assert "is not JSON at row 1" in said
    assert len(said) < 400


def test_a_long_number_in_a_csv_stays_text(put, read):
    long = "9" * 5000
    path = put("t.csv", f"image,caption,image_id\na.jpg,x,{long}\nb.jpg,y,12\nc.jpg,z,012\n")

    assert list(read("csv", path).captions) == [long, 12, "012"]


# Images in cells


def image_cells(kind: str, data: list[bytes]) -> tuple[str, bytes]:
    if kind == "struct":
        structs = [{"bytes": one, "path": f"{n}.jpg"} for n, one in enumerate(data)]
        return "parquet", as_parquet({"image": structs, "caption": ["a", "b"]})
    if kind == "binary":
        return "parquet", as_parquet({"jpg": data, "caption": ["a", "b"], "key": ["0", "1"]})
    texts = [base64.b64encode(one).decode() for one in data]
    if kind == "data URL":
        texts = [f"data:image/jpeg;base64,{text}" for text in texts]
    rows = [{"image": text, "caption": "ab"[n]} for n, text in enumerate(texts)]
    return ("csv" if kind == "csv" else "jsonl"), FORMATS["csv" if kind == "csv" else "jsonl"](rows)


@pytest.mark.parametrize("kind", ["struct", "binary", "base64", "csv"])
def test_images_in_cells_are_stored_as_they_are(put, tmp_path, tools, kind):
    data = [tools.encoded(tools.picture(n, 80, 60), quality=90) for n in range(2)]
    source, table = image_cells(kind, data)
    reading = open_source(source, SourceRequest(str(put("t", table))))
    build(reading, str(tmp_path / "o"), BuildOptions(workers=2))
    rows = list(reading.rows())

    assert [storage.read_bytes(r.image.path, r.image.offset, r.image.size) for r in rows] == data
    assert [row.image_id for row in rows] == (
        ["0.jpg", "1.jpg"] if kind == "struct" else [row.name for row in rows]
    )
    assert "images stand in the table" in " ".join(reading.notes.lines("t"))
    summary = build(reading, str(tmp_path / "o"), BuildOptions())
    assert (summary.images, summary.untouched) == (2, 2)


def test_a_data_url_is_an_image(put, read, tools):
    data = tools.encoded(tools.picture(0, 80, 60))
    _, table = image_cells("data URL", [data, data])
    found = read("jsonl", put("t.jsonl", table))
    places = [row.image for row in found.rows]

    assert places[0] == places[1]  # equal bytes are kept once
    assert storage.read_bytes(places[0].path, places[0].offset, places[0].size) == data


# Quotes


CAPTIONS = [
    "plain",
    '"Sunset over the bay, an oil painting',
    "third",
    "fourth",
    '"so" it began',
    "x",
]


@pytest.mark.parametrize("delimiter", ["\t", ",", "|"])
@pytest.mark.parametrize("order", ["image first", "caption first"])
def test_a_quote_that_swallows_rows_is_refused_and_the_switch_reads_them(
    put, read, delimiter, order
):
    # torchtext's TabularDataset and pandas swallowed such rows: pytorch/text#612,
    # pandas-dev/pandas#13860; pandas-dev/pandas#22661 has one that is never closed.
    captions = [text.replace(",", "") for text in CAPTIONS]
    rows = [("image", "caption"), *((f"{n}.jpg", text) for n, text in enumerate(captions))]
    rows = [row if order == "image first" else row[::-1] for row in rows]
    path = put("t.csv", "".join(delimiter.join(row) + "\n" for row in rows))
    with pytest.raises(SourceError, match=r"line 3: a cell that begins.*pass --quoting none"):
        read("csv", path)

    found = read("csv", path, quoting="none")
    assert found.captions == {f"{n}.jpg": [text] for n, text in enumerate(captions)}


@pytest.mark.parametrize("rows_after", [0, 3])
def test_a_quote_that_is_never_closed_is_refused(put, read, rows_after):
    lines = ["image\tcaption", '0.jpg\t"an open end', *(f"{n}.jpg\tx" for n in range(rows_after))]
    path = put("t.tsv", "\n".join(lines) + "\n")
    with pytest.raises(SourceError, match=r"line 2: a cell that begins with a quote .*none"):
        read("csv", path)
    assert len(read("csv", path, quoting="none").rows) == 1 + rows_after


def test_a_caption_of_several_lines_is_no_swallowed_row(put, read):
    text = "A dog, in snow.\nIt runs, and barks,\n1, 2, 3 and 4"
    path = put("t.csv", f'image,caption\n0.jpg,"{text}"\n1.jpg,x\n')

    assert read("csv", path).captions == {"0.jpg": [text], "1.jpg": ["x"]}


def test_a_misplaced_quote_costs_its_row_alone(put, read):
    path = put("t.csv", 'image,caption\n0.jpg,"a" dog\n1.jpg,x "y" z\n2.jpg,"fine, too"\n')
    found = read("csv", path)

    assert found.captions == {"1.jpg": ['x "y" z'], "2.jpg": ["fine, too"]}
    assert found.problems[0].origin == "t.csv line 2"
    assert "--quoting none reads quotes as text" in found.problems[0].detail


def test_sparks_escapes_are_found_and_said(put, read):
    r"""Spark writes \" where others write "" (apache/spark SPARK-22236)."""
    path = put(
        "part-00000.csv",
        'image,caption\n0.jpg,plain\n1.jpg,"He said \\"hi\\", loudly"\n'
        '2.jpg,"a \\"b\\"\nof two lines, \\\\ too"\n3.jpg,C:\\x\n',
    )
    found = read("csv", path)

    assert found.problems == []
    assert found.captions == {
        "0.jpg": ["plain"],
        "1.jpg": ['He said "hi", loudly'],
        "2.jpg": ['a "b"\nof two lines, \\ too'],
        "3.jpg": ["C:\\x"],
    }
    assert "as Spark writes it: it is read so from line 3 on" in found.notes


def test_surplus_cells_are_a_malformed_row(put, read):
    path = put("t.csv", "image,caption\n0.jpg,a dog, in snow\n1.jpg,x,,\n2.jpg,y\n")
    found = read("csv", path)

    assert found.captions == {"1.jpg": ["x"], "2.jpg": ["y"]}
    assert found.reasons == [
        ("malformed row", "has 3 cells, the first line 2; text that holds commas must be quoted")
    ]


# Encodings and delimiters


TEXT = "image,caption\n0.jpg,un café, été\n".replace("café, été", "café à l'été")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TEXT.encode("utf-16"), "t.csv is UTF-16"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "t.csv is UTF-16"),
        (TEXT.encode("utf-16-le"), "t.csv is UTF-16"),
        (TEXT.encode("utf-32"), "t.csv is UTF-32"),
        (TEXT.encode("utf-8-sig"), ""),
        (TEXT.encode("cp1252"), "t.csv is not UTF-8: read as Windows-1252"),
        (("sep=,\n" + TEXT).encode(), "t.csv names its delimiter: sep=,"),
        (("sep=;\r\n" + TEXT.replace(",", ";")).encode(), "t.csv names its delimiter: sep=;"),
        (TEXT.replace(",", ";").encode(), "t.csv is separated by semicolons"),
    ],
    ids=str,
)
def test_encodings_and_delimiters_are_found_and_said(put, read, data, said):
    found = read("csv", put("t.csv", data))

    assert found.captions == {"0.jpg": ["un café à l'été"]}
    assert said in found.notes
    assert bool(said) == ("t.csv" in found.notes.replace("in t.csv", ""))


def test_utf_16_keeps_its_first_row(put, read):
    rows = [{"image": f"{n}.jpg", "captions": [f"w {n}"]} for n in range(100)]
    text = "".join(json.dumps(row) + "\r\n" for row in rows)
    found = read("jsonl", put("c.jsonl", text.encode("utf-16")))

    assert len(found.rows) == 100
    assert "c.jsonl is UTF-16" in found.notes


def test_lines_that_are_no_text_in_a_utf_8_file_are_set_aside(put, read):
    good = 'image,caption\n0.jpg,"日本語 é"\n'.encode()
    found = read("csv", put("t.csv", good + b"1.jpg,caf\xe9 noir\n2.jpg,\xef\xe0\xf1\n"))

    assert list(found.captions) == ["0.jpg"]
    assert found.reasons == [("malformed row", "not UTF-8")] * 2


# Other files


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("t.csv", b"<!DOCTYPE html><html>", "is a web page"),
        ("t.csv", b"ARROW1\0\0", "write it as Parquet"),
        ("t.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "save it as CSV"),
        ("t.csv.gz", gzip.compress(TEXT.encode())[:-9], "t.csv.gz: cannot be read"),
        ("t.csv.gz", gzip.compress(bytes(257) + b"ustar\0"), "--source webdataset"),
        ("t.csv", "image,caption\na,".encode("utf-16")[:-1], "cannot be read"),
    ],
    ids=["LFS", "HTML", "Arrow", "Excel 97", "cut gzip", "tar", "half a sign"],
)
def test_files_that_are_no_tables_are_one_line(put, read, name, data, message):
    with pytest.raises(SourceError, match=message) as refusal:
        read("csv", put(name, data))
    assert "\n" not in str(refusal.value)


def test_a_zip_of_several_tables_is_to_be_unpacked(put, read):
    with pytest.raises(SourceError, match="is a zip of 2 files: unpack it"):
        read("csv", put("t.zip", zip_of({"a.csv": TEXT, "b.csv": TEXT})))
    with pytest.raises(SourceError, match="is an Excel workbook: save it as CSV"):
        read("csv", put("t.xlsx", zip_of({"xl/workbook.xml": ""})))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"image": "a.jpg", "caption": "x"}', "ends within its list, after 1 rows; is it cut?"),
        ('[{"image": "a.jpg", "capt', "is not JSON at row 0: "),
        ('[{"image": "a.jpg", "caption": "x"}] more', "has text after its list of 1 rows"),
        ('{"images": [], "annotations": []}', "is COCO's layout: read it with --source coco"),
        ('{"images": [{"sentences": []}]}', "Karpathy's layout: read it with --source karpathy"),
        ('{"image": {"0": "a.jpg"}, "caption": {"0": "x"}}', "orient='records'"),
        ('{"info": 5, "licence": 3}', "wanted are rows, a list of rows, or captions by image"),
    ],
)
def test_json_of_other_layouts_is_one_line(put, read, text, message):
    with pytest.raises(SourceError) as refusal:
        read("json", put("t.json", text))
    assert message in str(refusal.value)


def test_web_addresses_are_not_downloaded(put, read, tmp_path, tools):
    line = "web addresses are not downloaded: img2dataset does"
    for text in (
        "caption\turl\na dog\thttp://h/a.jpg\n",
        "a dog\thttps://h/a.jpg\nx y\thttp://h/b\n",
    ):
        with pytest.raises(SourceError, match=line):
            read("csv", put("t.tsv", text))
    table = put("t.csv", "image,caption\na.jpg,x\nhttp://h/b.jpg,y\n")
    put("a.jpg", tools.encoded(tools.picture(1)))
    source = open_source("csv", SourceRequest(str(table)))
    assert build(source, str(tmp_path / "o"), BuildOptions()).rejects == {"outside": 1}


# Without a header


def test_a_table_without_header_is_found_out_and_said(put, read, tmp_path):
    for n in range(2):
        put(f"images/{n}.jpg", b"")
    lines = [f"{n}.jpg#{k}\tTwo people , caption {k} .\n" for n in range(2) for k in range(5)]
    path = put("results_20130124.token", "".join(lines))
    found = read("csv", path, images=str(tmp_path / "images"))

    assert {i: len(texts) for i, texts in found.captions.items()} == {"0.jpg": 5, "1.jpg": 5}
    assert "has no header (its first line has 0.jpg#0): columns are 1 to 2" in found.notes
    assert "the number after # is cut from names: 0.jpg#0" in found.notes


def test_columns_without_names_go_by_number(put, read):
    path = put("t.csv", "0,a.jpg,one two,three four\n1,b.jpg,five six,seven eight\n")
    with pytest.raises(
        SourceError, match=r"columns 3, 4 can each be caption; say it with --column"
    ):
        read("csv", path)
    named = {"image": "2", "caption": "3,4"}
    for header in ("none", None):
        found = read("csv", path, header=header, columns=named)
        assert found.captions["b.jpg"] == ["five six", "seven eight"]
    with pytest.raises(SourceError, match="--header maybe is not known; choose none"):
        read("csv", path, header="maybe")


def test_a_column_of_splits_is_found_without_a_header(put, read):
    found = read("csv", put("t.csv", "a dog runs,a.jpg,train\na cat sits,b.jpg,val\n"))

    assert [(row.image_id, row.split) for row in found.rows] == [
        ("a.jpg", "train"),
        ("b.jpg", "val"),
    ]


def test_chained_protocols_in_the_first_row_are_rejects(put, tmp_path, tools):
    """fsspec opens a::b by both, which the rows of others must not make it do."""
    path = put("t.csv", "image,caption\ns3::file:///etc/a.jpg#0,x\na.jpg,z\n")
    put("a.jpg", tools.encoded(tools.picture(1)))
    source = open_source("csv", SourceRequest(str(path)))
    assert build(source, str(tmp_path / "o"), BuildOptions()).rejects == {"outside": 1}


def test_a_number_that_belongs_to_the_name_stays(put, read, tmp_path):
    put("a.jpg#1", b"x")
    path = put("t.csv", "image,caption\na.jpg#1,w\n")

    assert read("csv", path).rows[0].image_id == "a.jpg#1"


def test_options_of_texts_do_not_apply_to_others(put):
    with pytest.raises(SourceError, match="--quoting does not apply to --source parquet"):
        open_source("parquet", SourceRequest("x", quoting="none"))


# JSON in several shapes


def test_lists_of_blip_and_conversations_of_llava(put, read):
    blip = [
        {"caption": f"c{k} of {n}", "image": f"val2014/{n}.jpg", "image_id": f"coco_{n}"}
        for n in range(2)
        for k in range(5)
    ]
    for indent in (None, 2):
        found = read("jsonl", put("coco_karpathy_train.json", json.dumps(blip, indent=indent)))
        assert {i: len(texts) for i, texts in found.captions.items()} == {"coco_0": 5, "coco_1": 5}
        assert "coco_karpathy_train.json is a JSON list: it is read as such" in found.notes
        assert {row.split for row in found.rows} == {"train"}
    turns = [
        {"from": "human", "value": "<image>\nDescribe."},
        {"from": "gpt", "value": "A dog."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "In snow."},
    ]
    rows = [
        {"id": "1", "image": "0.jpg", "conversations": turns},
        {"id": "2", "image": "1.jpg", "conversations": turns[:1]},
        # haotian-liu/LLaVA#546: rows of text alone, about 40,000 of 665,000
        {"id": "3", "conversations": turns},
    ]
    found = read("json", put("llava.json", json.dumps(rows)))
    assert found.captions == {"0.jpg": ["A dog."]}
    assert [detail.split(";")[0] for _, detail in found.reasons] == [
        "the conversation has no turn of gpt or assistant, whose first is the caption",
        "image is None, not a path",
    ]


@pytest.mark.parametrize(
    "content",
    [
        {"0.jpg": ["one", "three"], "1.jpg": "two"},
        {"0.jpg": {"captions": ["one", "three"]}, "1.jpg": {"caption": "two"}},
        {"data": [{"image": i, "caption": t} for i, t in PAIRS]},
    ],
)
def test_objects_of_images_and_of_one_list(put, read, content):
    assert read("json", put("t.json", json.dumps(content))).captions == JOINED


def test_objects_of_splits(put, read):
    content = {s: [{"image": f"{s}.jpg", "caption": s}] for s in ("train", "val")}
    found = read("json", put("t.json", json.dumps(content, indent=1)))

    assert [(row.split, row.image_id) for row in found.rows] == [
        ("train", "train.jpg"),
        ("val", "val.jpg"),
    ]


def test_pretty_objects_one_after_the_other(put, read):
    rows = [{"image": i, "caption": t} for i, t in PAIRS]
    found = read("jsonl", put("t.jsonl", "\n".join(json.dumps(row, indent=2) for row in rows)))

    assert found.captions == JOINED
