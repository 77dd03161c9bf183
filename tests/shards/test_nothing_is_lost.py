"""Random tables and tars with planted faults, and an oracle that knows the truth.

A picture's number is written into its pixels, and a caption names the picture that it describes.
So what a build stored can be judged from the shards alone: no caption may stand with the pixels of
another picture, and a caption that is nowhere needs a line in ``rejects.jsonl``, or the build must
have ended with an error.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from archives import encoded, link, tar_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vse_shards.build import BuildOptions, build
from vse_shards.errors import UserError
from vse_shards.sources.registry import SourceRequest, open_source
from vse_shards.threshold import RejectLimit

SIDE = 16
FEW = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
MANY = FEW | {"derandomize": False, "database": None}


def picture(number: int, kind: str = "JPEG") -> bytes:
    """A picture of one colour, which survives JPEG: its number in base 8 in red and green."""
    colour = (16 + 32 * (number // 8), 16 + 32 * (number % 8), 128)
    return encoded(Image.new("RGB", (SIDE, SIDE), colour), kind)


def number_of(data: bytes) -> int:
    red, green, _ = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).mean((0, 1))
    return int(red) // 32 * 8 + int(green) // 32


@dataclass
class Table:
    """Rows and files of a source, and what is known about them.

    Attributes:
        rows: (id, image name, caption, split) of each row, in order.
        files: bytes by image name; a name may be missing.
        pictures: number of the picture by image name, of whole files.
    """

    rows: list[tuple[object, str, str, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    pictures: dict[str, int] = field(default_factory=dict)


FAULTS = [
    *("missing", "torn", "empty", "png", "upper", "backslash", "text"),  # a file's
    *("clash", "twice", "copied", "blank", "surplus", "short", "swapped"),  # a row's
]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """One to eight pictures of one to three captions, with up to three faults."""
    table = Table()
    count = draw(st.integers(1, 8))
    named = draw(st.booleans())
    for number in range(count):
        name = f"p{number}.jpg"
        table.files[name], table.pictures[name] = picture(number), number
        split = draw(st.sampled_from(["train", "train", "val"]))
        for k in range(draw(st.integers(1, 3))):
            identity = 100 + number if named else name
            table.rows.append((identity, name, f"caption {k} of {number}", split))
    for _ in range(draw(st.integers(0, 3))):
        plant(table, draw(st.sampled_from(FAULTS)), draw)
    return table


def plant(table: Table, fault: str, draw: st.DrawFn) -> None:
    """Change the table in the way of one fault."""
    at = draw(st.integers(0, len(table.rows) - 1))
    identity, name, text, split = table.rows[at]
    data = table.files.get(name)
    if fault == "missing":
        table.files.pop(name, None)
    elif fault == "torn" and data and len(data) > 9:
        table.files[name] = data[: draw(st.integers(1, len(data) - 3))]
        table.pictures.pop(name, None)
    elif fault == "empty":
        table.files[name] = b""
        table.pictures.pop(name, None)
    elif fault == "text":
        table.files[name] = b"<html>404</html>"
        table.pictures.pop(name, None)
    elif fault == "png" and name in table.pictures:
        table.files[name] = picture(table.pictures[name], "PNG")
    elif fault == "upper" and data is not None:
        table.files[name.upper()] = table.files.pop(name)
    elif fault == "backslash":
        table.rows[at] = (identity, f".\\{name}", text, split)
    elif fault == "clash":  # another picture under an id that exists
        other = 30 + at
        file = f"q{other}.jpg"
        table.files[file], table.pictures[file] = picture(other), other
        table.rows.insert(at, (identity, file, f"caption of {other}", split))
    elif fault == "twice":
        table.rows.append(table.rows[at])
    elif fault == "copied" and name in table.pictures:  # one picture under two ids
        number = table.pictures[name]
        copy = f"copy{number}.jpg"
        table.files[copy], table.pictures[copy] = data or b"", number
        table.rows.append((f"copy{number}", copy, f"caption 9 of {number}", split))
    elif fault == "blank":
        table.rows[at] = (identity, name, " ", split)
    elif fault == "swapped":  # rows of one image do not lie side by side
        other = draw(st.integers(0, len(table.rows) - 1))
        table.rows[at], table.rows[other] = table.rows[other], table.rows[at]
    elif fault in ("surplus", "short"):
        table.rows[at] = (identity, name, f"{text}\0{fault}", split)


def write_csv(table: Table, folder: Path) -> tuple[str, Path]:
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "image", "caption", "split"])
        for identity, name, text, split in table.rows:
            text, _, fault = text.partition("\0")
            cells = [identity, name, text, split]
            writer.writerow([*cells, "more"] if fault == "surplus" else cells[: 2 if fault else 4])
    return "csv", path


def write_jsonl(table: Table, folder: Path) -> tuple[str, Path]:
    path = folder / "rows.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for identity, name, text, split in table.rows:
            text, _, fault = text.partition("\0")
            entry = {"image_id": identity, "image": name, "captions": [text], "split": split}
            if fault == "short":
                del entry["captions"]
            file.write(json.dumps(entry) + "\n")
    return "jsonl", path


def write_json(table: Table, folder: Path) -> tuple[str, Path]:
    path = folder / "rows.json"
    rows = []
    for identity, name, text, split in table.rows:
        text = text.partition("\0")[0]
        rows.append({"image_id": identity, "image": name, "caption": text, "split": split})
    path.write_text(json.dumps(rows))
    return "json", path


def write_parquet(table: Table, folder: Path) -> tuple[str, Path]:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "image_id": [str(identity) for identity, *_ in table.rows],
        "image": [row[1] for row in table.rows],
        "caption": [row[2].partition("\0")[0] for row in table.rows],
        "split": [row[3] for row in table.rows],
    }
    path = folder / "rows.parquet"
    parquet.write_table(arrow.table(columns), path)
    return "parquet", path


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "json": write_json, "parquet": write_parquet}


@dataclass
class Stored:
    """What a dataset holds: (picture, caption) of each caption, and its rejects."""

    pairs: list[tuple[int, str]]
    rejects: str


def read_back(out: Path) -> Stored:
    """Read a dataset with tarfile and json alone."""
    pairs = []
    for tar in sorted(out.glob("*.tar")):
        with tarfile.open(tar) as archive:
            members = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
        for name, data in members.items():
            if name.endswith(".json"):
                image = number_of(members[name.removesuffix("json") + "jpg"])
                pairs += [(image, c["text"]) for c in json.loads(data)["captions"]]
    return Stored(pairs, (out / "rejects.jsonl").read_text("utf-8"))


def built(kind: str, path: Path, out: Path) -> Stored | None:
    """Build; None where the build ended with one line."""
    options = BuildOptions(
        allow_missing=True, allow_leaks=True, shard_samples=3, max_rejects=RejectLimit.parse("100%")
    )
    try:
        build(open_source(kind, SourceRequest(str(path))), str(out), options)
    except UserError as error:
        ended = str(error)
    else:
        return read_back(out)
    assert "\n" not in ended
    assert max(map(len, ended.replace(str(out), "").split())) < 120
    assert not (out / "manifest.json").exists()
    return None


def judge(stored: Stored, rows: list[tuple[list[str], str]]) -> None:
    """Compare what is stored with the rows: their names in a reject's line, and their caption."""
    for image, text in stored.pairs:
        assert text.split()[-1] == str(image), f"{text!r} is stored with picture {image}"
    texts = {text for _, text in stored.pairs}
    rejects = [json.loads(line) for line in stored.rejects.splitlines()]
    told = {str(r["source"]) for r in rejects} | {str(r["key"]) for r in rejects}
    for names, text in rows:
        assert text in texts or told.intersection(names), f"{names}, {text!r}: lost in silence"


@pytest.mark.parametrize("layout", WRITERS)
@settings(max_examples=300, **FEW)
@given(table=tables())
def test_a_table(layout: str, table: Table) -> None:
    check_table(layout, table)


@pytest.mark.soak
@pytest.mark.parametrize("layout", WRITERS)
@settings(max_examples=3000, **MANY)
@given(table=tables())
def test_many_tables(layout: str, table: Table) -> None:
    check_table(layout, table)


def check_table(layout: str, table: Table) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        for name, data in table.files.items():
            (folder / name).write_bytes(data)
        kind, path = WRITERS[layout](table, folder)
        stored = built(kind, path, folder / "out")
        if stored is None:
            return
        first = 2 if kind == "csv" else 0 if kind in ("parquet", "json") else 1
        rows = []
        for number, (identity, name, text, _) in enumerate(table.rows, start=first):
            places = [f"{path.name} {word} {number}" for word in ("line", "row", "entry")]
            rows.append(([str(identity), name, *places], text.partition("\0")[0].strip()))
        judge(stored, rows)
    finally:
        shutil.rmtree(folder)


TAR_FAULTS = [
    "again",
    "apart",
    "joined",
    "upper",
    "link",
    "torn",
    "html",
    "alone",
    "surrogate",
    "dots",
]


@dataclass
class Tar:
    """Bytes of a tar, and the captions in it with the names that a reject may give."""

    data: bytes
    captions: list[tuple[list[str], str]]


@st.composite
def tars(draw: st.DrawFn) -> Tar:
    """One to six samples, captions a line each, with up to two faults."""
    samples = [
        (f"s{number}", number, [f"caption {k} of {number}" for k in range(draw(st.integers(1, 3)))])
        for number in range(draw(st.integers(1, 6)))
    ]
    faults = draw(st.lists(st.sampled_from(TAR_FAULTS), max_size=2, unique=True))
    members: list[tuple[str, bytes]] = []
    captions = []
    for key, number, texts in samples:
        members += [(f"{key}.jpg", picture(number)), (f"{key}.txt", "\n".join(texts).encode())]
        captions += [([key], text) for text in texts]
    at = draw(st.integers(0, len(samples) - 1))
    key, number, texts = samples[at]
    if "again" in faults:  # appended to: the key once more, with another picture
        members += [(f"{key}.jpg", picture(50)), (f"{key}.txt", b"caption 0 of 50")]
        captions.append(([key], "caption 0 of 50"))
    if "apart" in faults:  # all pictures, then all captions
        members.sort(key=lambda member: member[0].endswith("txt"))
    if "html" in faults:
        members = [(n, b"<html>" if n == f"{key}.jpg" else d) for n, d in members]
    if "alone" in faults:
        members = [member for member in members if member[0] != f"{key}.jpg"]
    if "upper" in faults:
        members = [(n.replace(".jpg", ".JPG").replace(".txt", ".TXT"), d) for n, d in members]
    if "dots" in faults:
        members = [(n.replace(f"{key}.", f"{key}.v1."), d) for n, d in members]
    if "surrogate" in faults:
        members.append(("s\udcff.jpg", picture(51)))
    files = [members]
    if "joined" in faults:  # cat a.tar b.tar
        cut = draw(st.integers(0, len(members)))
        files = [members[:cut], members[cut:]]
    if "link" in faults:
        files = [linked(part) for part in files]
    data = b"".join(tar_of(part, format=tarfile.GNU_FORMAT) for part in files)
    if "torn" in faults:
        cut = draw(st.integers(1, len(data)))
        # Cut between the blocks of an end mark it is a whole tar, whatever was joined behind it.
        data = data[: cut - (cut % 512 == 0 and not data[cut - 512 : cut].strip(b"\0"))]
    return Tar(data, captions)


def linked(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes] | tarfile.TarInfo]:
    """Return members of which equal contents are hard links, as GNU tar stores them."""
    seen: dict[bytes, str] = {}
    for name, data in members:
        seen.setdefault(data, name)
    return [(n, d) if seen[d] == n else link(n, seen[d]) for n, d in members]


@settings(max_examples=800, **FEW)
@given(tar=tars())
def test_a_tar(tar: Tar) -> None:
    check_tar(tar)


@pytest.mark.soak
@settings(max_examples=8000, **MANY)
@given(tar=tars())
def test_many_tars(tar: Tar) -> None:
    check_tar(tar)


def check_tar(tar: Tar) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "in").mkdir()
        (folder / "in" / "00000.tar").write_bytes(tar.data)
        stored = built("webdataset", folder / "in", folder / "out")
        if stored is None:
            return
        for image, text in stored.pairs:
            assert text.split()[-1] == str(image), f"{text!r} is stored with picture {image}"
        texts = {text for _, text in stored.pairs}
        for (key,), text in tar.captions:
            told = key in stored.rejects or "incomplete tar" in stored.rejects
            assert text in texts or told, f"{key}, {text!r}: lost in silence"
    finally:
        shutil.rmtree(folder)
