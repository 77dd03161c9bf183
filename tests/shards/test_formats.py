"""Images as phones, browsers, crawls and attackers make them.

After: images kept as they were served (rom1504/img2dataset#243), such as AVIF under the name .jpg,
"Decompressed data too large" of text and profile chunks (python-pillow/Pillow#2445 and #8363),
Samsung's scan headers (lovell/sharp#2780, AcademySoftwareFoundation/OpenImageIO#2837,
Matthias-Wandel/jhead#18, image-rs/jpeg-decoder#130), panoramas with a video after the picture
(libjpeg-turbo/libjpeg-turbo#163, nomacs/nomacs#263), and bytes between segments that begin none
(jpeg-js/jpeg-js#82).
"""

from __future__ import annotations

import io
import json
import struct
import sys
import time
import types
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, PngImagePlugin, TiffImagePlugin

from vse_shards.images import (
    AFTER_END,
    FEW_BITS,
    POSITION,
    WARNING,
    ImageOptions,
    Rejected,
    check_image,
    decode_strictly,
)
from vse_shards.jpeg import read_header
from vse_shards.opening import open_picture

PLAIN = ImageOptions(quality=95)
VIDEO = b"\0\0\0\x18ftypmp42" + bytes(200_000)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def reason(data: bytes) -> str:
    """Why an image is refused, by the build and by all that opens one."""
    said = []
    for read in (lambda: check_image(data, PLAIN), lambda: open_picture(data).load()):
        with pytest.raises(Rejected) as refusal:
            read()
        said.append(str(refusal.value))
    assert said[0] == said[1]
    return said[0]


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def exif(*entries: tuple[int, int, bytes], order: str = "<", gps: bytes = b"") -> bytes:
    """An Exif segment of one directory, and what follows it."""
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
    for tag, kind, value in entries:
        tiff += struct.pack(order + "HHI", tag, kind, 1) + value
    return segment(0xE1, b"Exif\0\0" + tiff + bytes(4) + gps)


def located(*tags: int) -> bytes:
    """Exif with a directory of positions at its end, of these tags."""
    gps = struct.pack("<H", len(tags))
    gps += b"".join(struct.pack("<HHI4s", tag, 2, 2, b"N\0\0\0") for tag in tags) + bytes(4)
    return exif((0x8825, 4, struct.pack("<I", 26)), gps=gps)


# Formats


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "JPEG2000", "ICO", "PNG", "TIFF", "TGA", "PPM"])
def test_the_content_decides_whatever_the_name(tools, kind):
    picture = tools.picture(3, 64, 64)
    data = tools.encoded(picture, kind)
    checked = check_image(data, PLAIN)

    assert (checked.width, checked.height) == (64, 64)
    assert np.abs(decoded(checked.data) - np.asarray(picture).astype(int)).mean() < 6


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"hevc"])
def test_heic_names_the_package_that_reads_it(brand):
    data = b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(200)

    assert reason(data) == "no decoder: is HEIC: pip install pillow-heif"


def test_heic_is_read_where_its_plugin_is_installed(tools, monkeypatch):
    """The plugin's interface, and a decoder that draws the same picture for any data."""
    picture = tools.picture(4, 64, 48)
    plugin = types.ModuleType("pillow_heif")
    plugin.register_heif_opener = lambda: Image.register_open("HEIF", lambda file, name: picture)
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)

    assert (check_image(data, PLAIN).width, check_image(data, PLAIN).height) == (64, 48)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\x0a" + bytes(100), "no decoder: is JXL: pip install pillow-jxl-plugin"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image: is PostScript"),
        (b"8BPS\0\1" + bytes(100), "not an image: is a Photoshop file"),
        (b"\0\0\0\x18ftypmp42" + bytes(100), "not an image: is a video"),
        (b"\x1f\x8b\x08\0" + bytes(100), "not an image: is gzip"),
        (b"  <!DOCTYPE html>", "not an image: is HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not an image: is a pointer of Git LFS"),
        (b"root:x:0:0:root:/root:/bin/sh\n", "not an image: is text"),  # no byte of it is shown
        (bytes(range(128, 255)), "not an image: no known format of pictures"),
    ],
)
def test_what_is_no_image_is_named_without_showing_it(data, said):
    assert reason(data) == said


def test_png_with_a_large_profile_and_large_texts(tools):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "x" * 2_000_000, zip=True)
    data = tools.encoded(tools.picture(1), "PNG", pnginfo=info, icc_profile=bytes(1_500_000))
    plain = tools.encoded(tools.picture(1), "PNG")

    assert check_image(data, PLAIN).data == check_image(plain, PLAIN).data


def test_a_tiff_of_pages_is_refused_but_not_one_with_smaller_versions(tools):
    red, small = Image.new("RGB", (64, 64), (200, 30, 30)), Image.new("RGB", (16, 16))
    pages = tools.encoded(red, "TIFF", save_all=True, append_images=[small])
    assert reason(pages) == "several pages: 2 pages; captions are for one picture"

    file = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(file, True) as writer:
        red.save(writer, "TIFF")
        writer.newFrame()
        small.save(writer, "TIFF", tiffinfo={254: 1})
    checked = check_image(file.getvalue(), PLAIN)
    assert (checked.width, checked.height) == (64, 64)


# Values


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_few_bits_in_sixteen_are_scaled_and_counted(tools, bits):
    grey = np.linspace(0, 2**bits - 1, 64 * 64).reshape(64, 64).astype(np.uint16)
    checked = check_image(tools.encoded(Image.fromarray(grey), "PNG"), PLAIN)

    assert checked.changes == (FEW_BITS,)
    assert np.abs(decoded(checked.data)[..., 0] - (grey >> (bits - 8))).max() <= 4


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4, 9])
def test_an_orientation_of_any_integer_type_is_applied(tools, order, kind):
    value = struct.pack(order + {1: "B", 3: "H", 4: "I", 9: "i"}[kind], 6).ljust(4, b"\0")
    jpeg = tools.encoded(tools.picture(2, 48, 32))
    checked = check_image(jpeg[:2] + exif((0x0112, kind, value), order=order) + jpeg[2:], PLAIN)

    assert (checked.width, checked.height, checked.untouched) == (32, 48, False)


# JPEGs of phones


def test_what_follows_the_end_is_cut(tools):
    jpeg = tools.encoded(tools.picture(1))
    other = tools.encoded(tools.picture(2))
    for after in (VIDEO, b"\0", other, other + VIDEO):
        checked = check_image(jpeg + after, PLAIN)
        assert (checked.data, checked.untouched, checked.changes) == (jpeg, False, (AFTER_END,))


def test_a_progressive_picture_ends_at_its_own_end_marker(tools):
    jpeg = tools.encoded(tools.picture(1), progressive=True)
    checked = check_image(jpeg + VIDEO, ImageOptions(keep_bytes=True))

    assert checked.data == jpeg


def test_a_thumbnail_does_not_end_the_picture(tools):
    thumbnail = tools.encoded(tools.picture(5, 16, 16))
    jpeg = tools.encoded(tools.picture(1))
    data = jpeg[:2] + segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0" + thumbnail) + jpeg[2:]

    assert check_image(data, PLAIN).data == data


def test_of_an_mpo_the_first_picture_is_stored_without_the_list_of_the_others(tools):
    file = io.BytesIO()
    tools.picture(4).save(file, "MPO", save_all=True, append_images=[tools.picture(5)], quality=90)
    checked = check_image(file.getvalue(), PLAIN)

    assert Image.open(io.BytesIO(checked.data)).format == "JPEG"
    assert (decoded(checked.data) == decoded(file.getvalue())).all()


def test_positions_are_cut_unless_they_are_kept(tools):
    jpeg = tools.encoded(tools.picture(1))
    camera = exif((0x0112, 3, b"\1\0\0\0"))
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x exif:GPSLatitude='1'/>")
    harmless = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Make='y'/>")
    for position in (located(1, 2), xmp, located(0, 2) + xmp):
        data = jpeg[:2] + harmless + position + jpeg[2:]
        checked = check_image(data, PLAIN)
        assert checked.changes == (POSITION,)
        assert checked.data == jpeg[:2] + harmless + jpeg[2:]
        assert check_image(data, ImageOptions(keep_exif=True)).data == data
    for kept in (camera, located(0), harmless):
        data = jpeg[:2] + kept + jpeg[2:]
        assert check_image(data, PLAIN).data == data


def wrong_scan_header(jpeg: bytes) -> bytes:
    """As Samsung's cameras write it: the last three numbers are zero."""
    place = jpeg.index(b"\xff\xda")
    place += 5 + 2 * jpeg[place + 4]
    return jpeg[:place] + bytes(3) + jpeg[place + 3 :]


@pytest.mark.parametrize(
    "broken",
    [
        wrong_scan_header,
        lambda jpeg: jpeg[:20] + b"\0\1\2" + jpeg[20:],
        lambda jpeg: jpeg[:11] + b"\x07" + jpeg[12:],
        lambda jpeg: wrong_scan_header(jpeg[:20] + b"\xff\xff\0\0" + jpeg[20:]) + VIDEO,
    ],
    ids=["scan header", "bytes between segments", "revision of JFIF", "all at once"],
)
def test_a_fault_that_costs_no_pixel_is_mended(tools, broken):
    jpeg = tools.encoded(tools.picture(1))
    with pytest.raises(ValueError, match=r"\w"):
        simplejpeg.decode_jpeg(broken(jpeg), strict=True)
    checked = check_image(broken(jpeg), PLAIN)

    assert WARNING in checked.changes
    assert (simplejpeg.decode_jpeg(checked.data, strict=True) == decoded(jpeg)).all()


@pytest.mark.parametrize("broken", [wrong_scan_header, lambda jpeg: jpeg[:20] + b"\0" + jpeg[20:]])
def test_a_mended_marker_does_not_hide_damage(tools, broken):
    jpeg = tools.encoded(tools.picture(1, 200, 160))
    with pytest.raises(Rejected, match=r"truncated|damaged"):
        check_image(broken(jpeg)[:-400], PLAIN)
    rotten = bytearray(broken(jpeg))
    place = len(rotten) // 2
    rotten[place : place + 200] = bytes(200)
    with pytest.raises(Rejected, match=r"truncated|damaged"):
        check_image(bytes(rotten), PLAIN)


def test_the_summary_counts_what_was_changed(tools, write_rows, command, tmp_path):
    jpeg = tools.encoded(tools.picture(1))
    files = {
        "a.jpg": jpeg + VIDEO,
        "b.jpg": wrong_scan_header(tools.encoded(tools.picture(2))),
        "c.jpg": tools.encoded(tools.picture(3)),
    }
    path = write_rows([{"image": name, "captions": ["words"]} for name in files], files)
    arguments = ["build", "--source", "jsonl", "--input", path, "--out", tmp_path / "o"]
    done = command(*arguments, "--workers", 1, "--json")

    assert json.loads(done.stdout)["changes"] == {AFTER_END: 1, WARNING: 1}
    again = command(*arguments, "--workers", 1)
    assert f"stored {AFTER_END}: 1" in again.stderr
    assert f"stored {WARNING}: 1" in again.stderr


# Limits


def frame(jpeg: bytes, marker: int, width: int, height: int) -> bytes:
    place = jpeg.index(struct.pack("BB", 0xFF, marker)) + 5
    return jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def webp(kind: bytes, body: bytes) -> bytes:
    return b"RIFF\0\0\0\0WEBP" + kind + struct.pack("<I", len(body)) + body


def tiff(pages: int, count: int = 1) -> bytes:
    data = bytearray(b"II*\0\x08\0\0\0")
    for page in range(pages):
        entries = [(256, 3, 1, 64), (257, 3, 1, 48), (270, 1, count, 8)]
        data += struct.pack("<H", 3) + b"".join(struct.pack("<HHII", *e) for e in entries)
        data += struct.pack("<I", len(data) + 4 if page < pages - 1 else 0)
    return bytes(data)


def attacks(tools) -> dict[str, tuple[bytes, str]]:
    jpeg = tools.encoded(tools.picture(1))
    slow = tools.encoded(tools.picture(1), progressive=True)
    last = slow.rindex(b"\xff\xda")
    scans = slow[:last] + slow[last:-2] * 60_000 + slow[-2:]
    scan = jpeg.index(b"\xff\xda")
    icon = tools.encoded(tools.picture(1, 64, 64), "ICO")
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    return {
        "60,000 scans": (scans, "too large"),
        "60,000 arithmetic scans": (scans.replace(b"\xff\xc2", b"\xff\xca", 1), "too large"),
        "60,000 sequential scans": (jpeg[:scan] + jpeg[scan:-2] * 60_000 + jpeg[-2:], "too large"),
        "large and arithmetic": (
            frame(slow, 0xC2, 9900, 9900).replace(b"\xff\xc2", b"\xff\xca", 1),
            "too large",
        ),
        "a header that lies": (frame(jpeg, 0xC0, 9900, 9900), "truncated"),
        "a header that lies more": (frame(jpeg, 0xC0, 65_500, 65_500), "too large"),
        "8 MB of 0xFF": (b"\xff\xd8\xff" + b"\xff" * 8_000_000, "truncated"),
        "8 MB of 0xFF, then a picture": (
            b"\xff\xd8" + b"\xff" * 8_000_000 + jpeg[2:],
            "damaged",
        ),
        "8 MB of 0xFF00": (b"\xff\xd8" + b"\xff\0" * 4_000_000 + jpeg[2:], "damaged"),
        "two million segments": (
            b"\xff\xd8" + b"\xff\xe0\0\2" * 2_000_000 + jpeg[2:],
            "damaged",
        ),
        "8 million bytes of markers": (
            b"\xff\xd8\xff" + b"\x01\xff" * 4_000_000 + jpeg[2:],
            "damaged",
        ),
        "WebP of 30 bytes": (
            webp(b"VP8X", bytes(4) + b"\xfe\x3f\0\xfe\x3f\0"),
            "too large: 16383 x 16383",
        ),
        "lossless WebP of 34 bytes": (
            webp(b"VP8L", b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(9)),
            "too large: 16383 x 16383",
        ),
        "TIFF of 60,000 pages": (tiff(60_000), "several pages"),
        "TIFF whose values overlap": (tiff(1, 100_000_000), "damaged"),
        "PNG of 300,000 chunks": (png + chunk(b"tEXt", b"") * 300_000, "too large"),
        "icon of a large PNG": (
            icon.replace(struct.pack(">II", 64, 64), struct.pack(">II", 50_000, 50_000)),
            "too large",
        ),
        "GIF of a large screen": (
            (lambda gif: gif[:6] + b"\xff" * 4 + gif[10:])(tools.encoded(tools.picture(1), "GIF")),
            "too large",
        ),
    }


def test_each_attack_is_refused_in_seconds_wherever_an_image_is_opened(tools):
    for name, (data, said) in attacks(tools).items():
        start = time.process_time()
        assert reason(data).startswith(said), name
        assert time.process_time() - start < 5, name


def test_a_header_that_lies_is_refused_in_a_dataset_too(tools):
    jpeg = tools.encoded(tools.picture(1))

    with pytest.raises(Rejected, match="65500 x 65500"):
        decode_strictly(frame(jpeg, 0xC0, 65_500, 65_500))
    assert read_header(jpeg).end == len(jpeg)


def test_a_jpeg_cut_anywhere_in_its_header_is_refused(tools):
    jpeg = tools.encoded(tools.picture(1))
    for cut in range(3, jpeg.index(b"\xff\xda") + 10):
        with pytest.raises(Rejected, match=r"truncated|damaged"):
            check_image(jpeg[:cut], PLAIN)
