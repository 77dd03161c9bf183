"""Everything that goes wrong in real life: a reject with its reason, or one clear line."""

from __future__ import annotations

import errno
import json
import os
import resource
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from archives import encoded, tar_of
from PIL import Image

from vse_shards import output
from vse_shards.build import BuildOptions, build
from vse_shards.errors import OutputError, SourceError
from vse_shards.images import ImageOptions, Rejected, check_image
from vse_shards.manifest import Manifest
from vse_shards.sources.registry import SourceRequest, open_source
from vse_shards.threshold import RejectLimit
from vse_shards.verify import verify


def picture(size: tuple[int, int] = (64, 48)) -> Image.Image:
    draws = np.random.default_rng(1)
    coarse = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


GOOD = encoded(picture(), quality=90)
SCAN = GOOD.index(b"\xff\xda") + 14  # first byte of entropy-coded data


def replaced(data: bytes, start: int, new: bytes) -> bytes:
    return data[:start] + new + data[start + len(new) :]


def frame_size(jpeg: bytes, height: int, width: int) -> bytes:
    """The same JPEG with another size in its frame header."""
    place = jpeg.index(b"\xff\xc0") + 5
    return replaced(jpeg, place, struct.pack(">HH", height, width))


def png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of a header that promises anything, and hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def animated(kind: str) -> bytes:
    frames = [picture().rotate(90 * k) for k in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def many_scans() -> bytes:
    """A progressive JPEG with a thousand more scans than it needs."""
    data = encoded(picture(), progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * 1000 + b"\xff\xd9"


_PNG = encoded(picture(), "PNG")
_FLIPPED = bytearray(_PNG)
_FLIPPED[_PNG.index(b"IDAT") + 40] ^= 4

IMAGES: dict[str, tuple[bytes, set[str]]] = {
    **{
        f"cut at {percent}%": (GOOD[: len(GOOD) * percent // 100], {"truncated", "damaged"})
        for percent in (1, 3, 5, 10, 20, 35, 50, 65, 80, 95)
    },
    "last two bytes missing": (GOOD[:-2], {"truncated"}),
    "zeros in the scan": (
        replaced(GOOD, SCAN + 100, bytes(len(GOOD) - SCAN - 200)),
        {"damaged", "truncated"},
    ),
    "markers in the scan": (replaced(GOOD, SCAN + 100, b"\xff\xd9" * 5), {"truncated", "damaged"}),
    "rotten scan": (replaced(GOOD, SCAN + 50, bytes(range(1, 200))), {"damaged", "truncated"}),
    "rotten tables": (replaced(GOOD, GOOD.index(b"\xff\xc4") + 5, b"\xff" * 40), {"damaged"}),
    "no tables": (GOOD[:2] + GOOD[GOOD.index(b"\xff\xc0") :], {"damaged"}),
    "no start of frame": (GOOD.replace(b"\xff\xc0", b"\xff\xe9", 1), {"damaged"}),
    "twelve bits": (replaced(GOOD, GOOD.index(b"\xff\xc0") + 4, b"\x0c"), {"damaged"}),
    "lossless": (GOOD.replace(b"\xff\xc0", b"\xff\xc3", 1), {"damaged"}),
    "frame larger than its data": (frame_size(GOOD, 480, 640), {"truncated", "damaged"}),
    "frame of no height": (frame_size(GOOD, 0, 64), {"too small"}),
    "no bytes": (b"", {"empty file"}),
    "zero bytes": (bytes(5000), {"not an image"}),
    "HTML": (b"<!doctype html><html><body>404 Not Found</body></html>", {"not an image"}),
    "JSON": (b'{"error": "rate limit"}', {"not an image"}),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', {"not an image"}),
    "PDF": (b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", {"not an image"}),
    "random bytes": (np.random.default_rng(0).bytes(4000), {"not an image"}),
    "start of a JPEG alone": (b"\xff\xd8\xff", {"truncated"}),
    "start of a PNG alone": (_PNG[:8], {"truncated"}),
    "PNG cut": (_PNG[: len(_PNG) // 2], {"truncated"}),
    "PNG with a flipped bit": (bytes(_FLIPPED), {"damaged"}),
    "WebP cut": (encoded(picture(), "WEBP")[:200], {"truncated", "damaged", "not an image"}),
    "GIF cut": (encoded(picture(), "GIF")[:1000], {"truncated", "damaged"}),
    "BMP cut": (encoded(picture(), "BMP")[:2000], {"truncated", "damaged"}),
    "TIFF cut": (encoded(picture(), "TIFF")[:2000], {"truncated", "damaged", "not an image"}),
    "animated GIF": (animated("GIF"), {"animated"}),
    "animated PNG": (animated("PNG"), {"animated"}),
    "animated WebP": (animated("WEBP"), {"animated"}),
    "1 x 1": (encoded(picture((1, 1))), {"too small"}),
    "1 x 1 PNG": (encoded(picture((1, 1)), "PNG"), {"too small"}),
    "20,000 x 1": (encoded(picture((20_000, 1))), {"too small"}),
    "20,000 x 8 shrunk to nothing": (encoded(picture((20_000, 8))), {"too small"}),
    "PNG bomb": (png(50_000, 50_000), {"too large"}),
    "one-bit PNG bomb": (png(60_000, 60_000, 1, 0), {"too large"}),
    "bomb within Pillow's limit": (png(12_000, 12_000), {"too large"}),
    "JPEG bomb": (frame_size(GOOD, 65_500, 65_500), {"too large"}),
    "bomb of scans": (many_scans(), {"too large"}),
    "floating-point TIFF": (
        encoded(Image.fromarray(np.random.default_rng(0).random((32, 32), np.float32)), "TIFF"),
        {"not an image"},
    ),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_bad_image_is_refused_with_its_reason(kind):
    data, reasons = IMAGES[kind]
    with pytest.raises(Rejected) as refusal:
        check_image(data, ImageOptions(max_side=256))

    assert refusal.value.reason in reasons, refusal.value
    assert refusal.value.detail


def test_all_bad_images_at_once_leave_the_good_one(write_rows, tmp_path):
    files = {f"{n}.jpg": data for n, (data, _) in enumerate(IMAGES.values())}
    files["good.jpg"] = GOOD
    rows = [{"image": name, "captions": ["words"]} for name in files]
    path = write_rows(rows, files)
    options = BuildOptions(
        ImageOptions(max_side=256),
        shard_samples=10,
        workers=2,
        max_rejects=RejectLimit.parse("100%"),
    )
    summary = build(open_source("jsonl", SourceRequest(str(path))), str(tmp_path / "o"), options)

    assert summary.images == 1
    lines = [json.loads(line) for line in (tmp_path / "o/rejects.jsonl").open()]
    assert len(lines) == len(IMAGES)
    for line in lines:
        number = int(line["key"].removesuffix(".jpg"))
        assert line["reason"] in list(IMAGES.values())[number][1]
    assert verify(tmp_path / "o", deep=True) == []


# Files that are odd, not the bytes in them.


@pytest.mark.parametrize(
    "name",
    [
        "with space.jpg", "with.many.dots.jpg", "ünïcödé 图片.jpg", "new\nline.jpg", "-rf.jpg",
        "'quoted\".jpg", "no_suffix", "UPPER.JPG", "deep/er/down.jpg", "%2e%2e.jpg",
    ],
)  # fmt: skip
def test_odd_names_build_and_keep_their_id(write_rows, tmp_path, name):
    path = write_rows([{"image": name, "captions": ["words"]}], {name: GOOD})
    build(open_source("jsonl", SourceRequest(str(path))), str(tmp_path / "o"), BuildOptions())

    with tarfile.open(tmp_path / "o/train-000000.tar") as archive:
        names = archive.getnames()
        description = json.load(archive.extractfile("00000000.json"))
    assert names == ["00000000.jpg", "00000000.json"]
    assert description["image_id"] == name


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def _loop_of_two(path: Path) -> None:
    other = path.with_suffix(".other")
    path.symlink_to(other)
    other.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_link_to_itself, "missing image"),
        (_loop_of_two, "missing image"),
        (lambda path: path.symlink_to("nowhere"), "missing image"),
        (lambda path: path.mkdir(), "missing image"),
        (lambda path: os.mkfifo(path), "missing image"),
        (lambda path: path.symlink_to("/dev/zero"), "outside"),
    ],
    ids=["link to itself", "loop", "dangling link", "folder", "pipe", "device"],
)
def test_files_that_are_none_are_set_aside(
    write_rows, tmp_path, make: Callable[[Path], None], reason
):
    rows = [{"image": name, "captions": ["words"]} for name in ("good.jpg", "bad.jpg")]
    path = write_rows(rows, {"good.jpg": GOOD})
    make(tmp_path / "source/images/bad.jpg")
    build(
        open_source("jsonl", SourceRequest(str(path))),
        str(tmp_path / "o"),
        BuildOptions(allow_missing=True),
    )

    (line,) = map(json.loads, (tmp_path / "o/rejects.jsonl").open())
    assert (line["key"], line["reason"]) == ("bad.jpg", reason)


def test_an_image_that_may_not_be_read_is_set_aside(write_rows, tmp_path):
    rows = [{"image": name, "captions": ["words"]} for name in ("good.jpg", "bad.jpg")]
    path = write_rows(rows, {"good.jpg": GOOD})
    # A regular file that the kernel lets nobody read: mode 0 would not keep root out.
    (tmp_path / "source/images/bad.jpg").symlink_to("/proc/sys/vm/drop_caches")
    options = BuildOptions(allow_outside=True)
    build(open_source("jsonl", SourceRequest(str(path))), str(tmp_path / "o"), options)

    (line,) = map(json.loads, (tmp_path / "o/rejects.jsonl").open())
    assert (line["key"], line["reason"]) == ("bad.jpg", "unreadable")
    assert line["detail"] == "Permission denied"


def test_links_in_a_circle_end(tmp_path):
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    (folder / "a/x.jpg").write_bytes(GOOD)
    (folder / "a/x.txt").write_text("words")
    (folder / "a/up").symlink_to(folder)
    rows = list(open_source("folder", SourceRequest(str(folder))).rows())

    assert [row.image_id for row in rows] == ["a/x.jpg"]


def test_an_image_that_vanishes_is_set_aside(write_rows, tmp_path):
    path = write_rows(
        [{"image": f"{n}.jpg", "captions": ["w"]} for n in range(2)],
        {f"{n}.jpg": GOOD for n in range(2)},
    )
    source = open_source("jsonl", SourceRequest(str(path)))

    class Vanishing:
        kind, name = source.kind, source.name

        def rows(self):
            yield from source.rows()
            (tmp_path / "source/images/1.jpg").rename(tmp_path / "gone.jpg")

    build(Vanishing(), str(tmp_path / "o"), BuildOptions())
    (line,) = map(json.loads, (tmp_path / "o/rejects.jsonl").open())
    assert (line["key"], line["reason"]) == ("1.jpg", "unreadable")


# Rows.

WORDS = json.dumps(["words"]).encode()
ROWS: dict[str, tuple[bytes, list[str]]] = {
    "not UTF-8": (b'{"image": "a.jpg", "captions": ["\xff\xfe"]}', ["malformed row"]),
    "not JSON": (b'{"image": "a.jpg", ', ["malformed row"]),
    "not an object": (b'["a.jpg", "words"]', ["malformed row"]),
    "nested too deep": (b"[" * 200_000, ["malformed row"]),
    "no image": (b'{"captions": ["words"]}', ["malformed row"]),
    "image is a number": (b'{"image": 5, "captions": ["words"]}', ["malformed row"]),
    "image with a zero": (b'{"image": "a\\u0000.jpg", "captions": ["words"]}', ["malformed row"]),
    "image is half a pair": (b'{"image": "\\ud800", "captions": ["w"]}', ["malformed row"]),
    "name too long": (b'{"image": "%s", "captions": ["w"]}' % (b"a" * 5000), ["missing image"]),
    "no captions": (b'{"image": "a.jpg"}', ["malformed row"]),
    "no caption in the list": (b'{"image": "a.jpg", "captions": []}', ["no caption"]),
    "captions is a number": (b'{"image": "a.jpg", "captions": 7}', ["malformed row"]),
    "empty caption": (b'{"image": "a.jpg", "captions": [" \\n"]}', ["empty caption", "no caption"]),
    "caption is a number": (
        b'{"image": "a.jpg", "captions": [7]}',
        ["malformed caption", "no caption"],
    ),
    "caption is half a pair": (
        b'{"image": "a.jpg", "captions": ["\\ud83d"]}',
        ["malformed caption", "no caption"],
    ),
    "10,000 words": (
        json.dumps({"image": "a.jpg", "captions": ["word " * 10_000]}).encode(),
        ["caption too long", "no caption"],
    ),
    "one word of 200,000 letters": (
        json.dumps({"image": "a.jpg", "captions": ["x" * 200_000]}).encode(),
        ["caption too long", "no caption"],
    ),
    "ids of other number": (
        b'{"image": "a.jpg", "captions": ["w"], "caption_ids": [1, 2]}',
        ["malformed row"],
    ),
    "id is a list": (b'{"image": "a.jpg", "image_id": [1], "captions": ["w"]}', ["malformed row"]),
    "id is true": (b'{"image": "a.jpg", "image_id": true, "captions": ["w"]}', ["malformed row"]),
    "split is a number": (b'{"image": "a.jpg", "split": 1, "captions": ["w"]}', ["malformed row"]),
    "said before": (
        b'{"image": "a.jpg", "image_id": "good.jpg", "captions": ["words"]}',
        ["duplicate caption"],
    ),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_bad_row_is_set_aside_with_its_reason(write_rows, tmp_path, kind):
    line, reasons = ROWS[kind]
    path = write_rows(
        [{"image": "good.jpg", "captions": ["words"]}], {"good.jpg": GOOD, "a.jpg": GOOD}
    )
    with path.open("ab") as file:
        file.write(line + b"\n")
    summary = build(
        open_source("jsonl", SourceRequest(str(path))),
        str(tmp_path / "o"),
        BuildOptions(allow_missing=True),
    )

    lines = [json.loads(text) for text in (tmp_path / "o/rejects.jsonl").open()]
    assert [entry["reason"] for entry in lines] == reasons
    assert all(entry["source"] == "captions.jsonl line 2" for entry in lines)
    assert (summary.images, summary.pairs) == (1, 1)


def test_good_captions_beside_a_bad_one_are_kept(write_rows, tmp_path):
    path = write_rows([{"image": "a.jpg", "captions": ["one", "", "three"]}], {"a.jpg": GOOD})
    summary = build(
        open_source("jsonl", SourceRequest(str(path))), str(tmp_path / "o"), BuildOptions()
    )

    assert (summary.images, summary.pairs, summary.rejects) == (1, 2, {"empty caption": 1})


# Sources as a whole.


def _npy(folder: Path, array: np.ndarray, **options: object) -> None:
    (folder / "train_ids.txt").write_text("1\n2\n")
    (folder / "train_caps.txt").write_text("a\nb\n")
    np.save(folder / "train_ims.npy", array, **options)


def _raw(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


SOURCES: dict[str, tuple[str, str, Callable[[Path], object], str]] = {
    "empty CSV": ("csv", "t.csv", _raw("t.csv", b"\n"), "is empty"),
    "binary CSV": ("csv", "t.csv", _raw("t.csv", bytes(range(256))), "no column 'image'"),
    "CSV of a header": ("csv", "t.csv", _raw("t.csv", b"image,caption\n"), "is empty"),
    "CSV not UTF-8": (
        "csv",
        "t.csv",
        _raw("t.csv", b"image,caption\na.jpg,\xff\xfe\n"),
        "malformed row: not UTF-8",
    ),
    "CSV of short lines": (
        "csv",
        "t.csv",
        _raw("t.csv", b"image,caption\na.jpg\n"),
        "has 1 cells; the header names more",
    ),
    "Parquet that is none": ("parquet", "t.parquet", _raw("t.parquet", b"PAR1" * 9), "as Parquet"),
    "folder without images": ("folder", ".", _raw("a.txt", b"w"), "caption for no image"),
    "empty folder": ("folder", ".", lambda folder: None, "is empty"),
    "folder with a bad text": (
        "folder",
        ".",
        lambda folder: (_raw("a.jpg", GOOD)(folder), _raw("a.txt", b"\xff\xfe")(folder)),
        "malformed caption",
    ),
    "no tar": ("webdataset", ".", _raw("a.bin", b"x"), r"has no \.tar"),
    "packed tar that is none": ("webdataset", ".", _raw("a.tar.gz", b"x"), "incomplete tar"),
    "tar that is none": ("webdataset", "t.tar", _raw("t.tar", b"x" * 2000), "incomplete tar"),
    "empty tar": ("webdataset", "t.tar", _raw("t.tar", b""), "incomplete tar"),
    "tar without members": ("webdataset", "t.tar", _raw("t.tar", bytes(10240)), "is empty"),
    "broken statistics": (
        "webdataset",
        "t.tar",
        lambda folder: (_raw("t.tar", bytes(10240))(folder), _raw("t_stats.json", b"{")(folder)),
        "img2dataset's statistics",
    ),
    "Karpathy that is no JSON": ("karpathy", "d.json", _raw("d.json", b"{"), "is not JSON"),
    "Karpathy without sentences": (
        "karpathy",
        "d.json",
        _raw("d.json", b'{"images": [{"imgid": 1, "split": "train", "filename": "a"}]}'),
        "no key 'sentences'",
    ),
    "COCO without annotations": ("coco", "d.json", _raw("d.json", b'{"images": []}'), "layout of"),
    "no lists": ("precomp", ".", lambda folder: None, r"has no \*_ids\.txt"),
    "regions of pickles": (
        "precomp",
        ".",
        lambda folder: _npy(folder, np.array([{}, []], object), allow_pickle=True),
        r"cannot be read as \.npy",
    ),
    "regions of another shape": (
        "precomp",
        ".",
        lambda folder: _npy(folder, np.zeros((2, 5), np.float32)),
        r"shape \(2, 5\)",
    ),
    "regions of integers": (
        "precomp",
        ".",
        lambda folder: _npy(folder, np.zeros((2, 5, 3), np.int64)),
        "is int64",
    ),
    "regions cut": (
        "precomp",
        ".",
        lambda folder: (
            _npy(folder, np.zeros((2, 5, 3), np.float32)),
            os.truncate(folder / "train_ims.npy", 200),
        ),
        r"cannot be read as \.npy",
    ),
    "regions that are not finite": (
        "precomp",
        ".",
        lambda folder: _npy(folder, np.full((2, 5, 3), np.nan, np.float32)),
        "all 2 images were rejected",
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_bad_source_is_one_clear_line(tmp_path, kind):
    source, name, make, message = SOURCES[kind]
    folder = tmp_path / "in"
    (folder / "images").mkdir(parents=True)
    if source == "precomp":
        (folder / "images").rmdir()
    make(folder)
    with pytest.raises(SourceError, match=message) as error:
        build(
            open_source(source, SourceRequest(str(folder / name))),
            str(tmp_path / "out"),
            BuildOptions(),
        )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_tar_that_ends_early_keeps_what_came_before(tmp_path):
    whole = tar_of([(f"{n}.{kind}", data) for n in range(4)
                    for kind, data in (("txt", b"words"), ("jpg", GOOD))])  # fmt: skip
    third = whole.index(b"2.jpg") + 512 + len(GOOD) // 2
    (tmp_path / "t.tar").write_bytes(whole[:third])
    summary = build(
        open_source("webdataset", SourceRequest(str(tmp_path / "t.tar"))),
        str(tmp_path / "out"),
        BuildOptions(allow_missing=True),
    )

    assert summary.images == 2
    assert summary.rejects.get("incomplete tar") == 1


def test_a_split_that_cannot_be_a_file_name_is_refused(write_rows, tmp_path):
    rows = [{"image": "a.jpg", "split": "../evil", "captions": ["words"]}]
    path = write_rows(rows, {"a.jpg": GOOD})
    with pytest.raises(SourceError, match=r"split '\.\./evil' cannot be part of a file name"):
        build(open_source("jsonl", SourceRequest(str(path))), str(tmp_path / "o"), BuildOptions())


# Output.


# Run where ``mount`` is allowed and gone with the process: $1 the source, $2 the folder to write.
ON_A_DISK = """
set -e
run() { "$0" -c 'from vse_shards.cli import main; main()' "$@"; }
build() { run build --source jsonl --input "$1" --out "$2/o" --shard-samples 7 --workers 2; }
"""


def in_a_namespace(script: str, source: Path, disk: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script that mounts file systems of its own."""
    disk.mkdir()
    enter = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*enter, "mount", "-t", "tmpfs", "none", disk]).returncode:
        pytest.skip("needs unshare, and leave to mount")
    return subprocess.run(
        [*enter, "sh", "-c", ON_A_DISK + script, sys.executable, str(source), str(disk)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("room", ["16k", "160k"], ids=["rows", "shards"])
def test_a_full_disk_is_one_line_and_the_build_goes_on_with_more_room(small_source, tmp_path, room):
    script = f"""
        mount -t tmpfs -o size={room} none "$2"
        build "$1" "$2" && exit 90
        test $? = 2
        test -z "$(find "$2/o" -name '*tmp')"
        mount -o remount,size=10m "$2"
        build "$1" "$2"
        run verify "$2/o"
    """
    result = in_a_namespace(script, small_source(120), tmp_path / "disk")

    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    (said,) = [line for line in result.stderr.splitlines() if "error:" in line]
    assert "cannot be written" in said
    assert "run the same command again: finished shards are kept" in said
    assert "is as the manifest says" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_read_only_disk_is_one_line(small_source, tmp_path):
    result = in_a_namespace(
        'mount -t tmpfs -o ro none "$2"; build "$1" "$2"', small_source(3), tmp_path / "disk"
    )

    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].endswith(
        "/disk/o: cannot be written: Read-only file system; make room or change the permission, "
        "then run the same command again: finished shards are kept"
    )


def test_a_disk_that_is_full_at_any_write_leaves_nothing_half(small_source, tmp_path, monkeypatch):
    source = open_source("jsonl", SourceRequest(str(small_source(20))))
    options = BuildOptions(shard_samples=7)
    room = [3]

    def fsync(handle: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output.os, "fsync", fsync)
    with pytest.raises(OutputError, match=r"cannot be written: No space left.*same command again"):
        build(source, str(tmp_path / "o"), options)
    monkeypatch.undo()
    assert not [name for name in os.listdir(tmp_path / "o") if name.endswith("tmp")]

    build(source, str(tmp_path / "o"), options)
    assert verify(tmp_path / "o") == []


@pytest.mark.parametrize("limited", [5_000, 60_000], ids=["rows", "shards"])
def test_a_limit_on_file_size_is_one_line_from_any_process(small_source, tmp_path, limited):
    arguments = ["build", "--source", "jsonl", "--input", str(small_source(60))]
    arguments += ["--out", str(tmp_path / "o"), "--workers", "2"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limited, limited))

    result = subprocess.run(
        [sys.executable, "-c", "from vse_shards.cli import main; main()", *arguments],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "cannot be written" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("out", ["/proc/nowhere", "/sys/kernel/nowhere"])
def test_a_read_only_place_is_one_line(small_source, out):
    source = open_source("jsonl", SourceRequest(str(small_source(3))))
    with pytest.raises(OutputError, match=f"{out}: cannot be written"):
        build(source, out, BuildOptions())


def test_a_file_in_the_place_of_the_output_is_one_line(small_source, tmp_path):
    (tmp_path / "o").write_text("mine")
    source = open_source("jsonl", SourceRequest(str(small_source(3))))
    for out in (tmp_path / "o", tmp_path / "o/below"):
        with pytest.raises(OutputError, match="cannot be written"):
            build(source, str(out), BuildOptions())
    assert (tmp_path / "o").read_text() == "mine"


def test_a_dataset_that_was_cut_off_is_none_yet(small_source, tmp_path):
    build(
        open_source("jsonl", SourceRequest(str(small_source(5)))),
        str(tmp_path / "o"),
        BuildOptions(),
    )
    (tmp_path / "o/manifest.json").unlink()
    from vse_shards.errors import DatasetError

    with pytest.raises(DatasetError, match="its build is incomplete: run the same"):
        Manifest.load(tmp_path / "o")
