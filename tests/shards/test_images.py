"""What becomes of images that can be used; test_bad_inputs has the others."""

from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vse_shards.images import ImageOptions, Rejected, check_image
from vse_shards.jpeg import read_header

AS_THEY_ARE = ImageOptions(quality=95)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def alike(stored: bytes, expected: Image.Image, tolerance: float = 3.0) -> bool:
    """Whether a stored JPEG shows what it should, as well as JPEG can."""
    expected = np.asarray(expected.convert("RGB")).astype(int)
    pixels = decoded(stored)
    assert pixels.shape == expected.shape
    return float(np.abs(pixels - expected).mean()) < tolerance


def is_baseline_rgb(data: bytes) -> bool:
    header = read_header(data)
    return (header.frame, header.components, header.orientation) == (0, 3, 1)


def with_orientation(jpeg: bytes, orientation: int, order: str = "<") -> bytes:
    """Put an Exif segment with an orientation after the start of a JPEG."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    tiff = mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def test_a_fit_jpeg_is_stored_byte_for_byte(tools):
    data = tools.encoded(tools.picture(1, 60, 50))
    checked = check_image(data, AS_THEY_ARE)

    assert (checked.data, checked.untouched) == (data, True)
    assert (checked.width, checked.height) == (60, 50)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_baked_in(tools, orientation, order):
    data = with_orientation(tools.encoded(tools.picture(2, 48, 32), quality=95), orientation, order)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    checked = check_image(data, AS_THEY_ARE)

    assert checked.untouched == (orientation == 1)
    assert alike(checked.data, upright)
    assert (checked.width, checked.height) == upright.size
    assert is_baseline_rgb(checked.data)


@pytest.mark.parametrize("orientation", [0, 9, 4000])
def test_an_orientation_that_is_none_is_not_applied(tools, orientation):
    data = with_orientation(tools.encoded(tools.picture(2)), orientation)

    assert check_image(data, AS_THEY_ARE).data == data


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("PNG", "1"),
        ("WEBP", "RGB"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "CMYK"),
        ("PPM", "RGB"), ("TIFF", "LAB"),
    ],
)  # fmt: skip
def test_other_kinds_become_baseline_rgb(tools, kind, mode):
    picture = tools.picture(3, 64, 48)
    if mode == "LAB":
        picture = Image.merge("LAB", picture.split())
    elif mode == "P":
        picture = picture.quantize(256)
    elif mode != "RGB":
        picture = picture.convert(mode)
    data = tools.encoded(picture, kind)
    checked = check_image(data, AS_THEY_ARE)

    assert not checked.untouched
    assert is_baseline_rgb(checked.data)
    assert alike(checked.data, Image.open(io.BytesIO(data)), {"1": 12, "P": 8}.get(mode, 4))


def test_sixteen_bits_are_scaled_not_clipped(tools):
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    checked = check_image(tools.encoded(Image.fromarray(grey), "PNG"), AS_THEY_ARE)

    expected = np.repeat((grey >> 8).astype(int)[..., None], 3, axis=-1)
    assert np.abs(decoded(checked.data) - expected).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_white(tools, mode):
    picture = tools.picture(4, 64, 64).convert("RGBA")
    picture.putalpha(Image.new("L", (64, 64), 0))
    picture.paste((10, 200, 30, 255), (0, 0, 64, 32))
    if mode == "LA":
        picture = picture.convert("LA")
    elif mode == "PA":
        picture = picture.quantize(16)
    pixels = decoded(check_image(tools.encoded(picture, "PNG"), AS_THEY_ARE).data)

    assert pixels[40:].min() >= 250
    assert pixels[:24].max() <= 215


def test_a_progressive_jpeg_is_fit_only_if_bytes_are_to_be_kept(tools):
    data = tools.encoded(tools.picture(5, 64, 64), progressive=True, quality=95)
    converted = check_image(data, AS_THEY_ARE)
    kept = check_image(data, ImageOptions(keep_bytes=True, max_side=32))

    assert not converted.untouched
    assert is_baseline_rgb(converted.data)
    assert alike(converted.data, Image.open(io.BytesIO(data)))
    assert (kept.data, kept.untouched) == (data, True)


def test_keeping_bytes_does_not_keep_what_must_be_converted(tools):
    turned = with_orientation(tools.encoded(tools.picture(6, 48, 32)), 6)
    checked = check_image(turned, ImageOptions(keep_bytes=True))

    assert (checked.width, checked.height, checked.untouched) == (32, 48, False)


@pytest.mark.parametrize(
    "size",
    [(400, 300), (300, 401), (1200, 250), (97, 97), (96, 20), (150, 101), (128, 127), (260, 99)],
)
def test_shrinking_bounds_the_longest_side_and_keeps_the_shape(tools, size):
    data = tools.encoded(tools.picture(7, *size), quality=95)
    checked = check_image(data, ImageOptions(max_side=96, quality=95))

    assert checked.untouched == (max(size) <= 96)
    scale = min(1, 96 / max(size))
    assert (checked.width, checked.height) == tuple(round(side * scale) for side in size)
    reference = Image.open(io.BytesIO(data)).resize(
        (checked.width, checked.height), Image.Resampling.LANCZOS
    )
    assert alike(checked.data, reference)


def test_shrinking_does_not_alias(tools):
    # One-pixel stripes: without a filter they would come out black or white, or as moiré.
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    data = tools.encoded(Image.fromarray(stripes), "PNG")
    pixels = decoded(check_image(data, ImageOptions(max_side=100)).data)

    assert abs(pixels.mean() - 127.5) < 3
    assert pixels[5:-5, 5:-5].std() < 8


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(8, 80), st.integers(8, 80))
def test_equal_pixels_have_equal_digests_and_others_others(tools, seed, width, height):
    picture = tools.picture(seed, width, height)
    plain, commented = (tools.encoded(picture, comment=text) for text in (b"", b"a comment"))
    other = tools.encoded(tools.picture(seed + 1, width, height))
    digests = [check_image(data, AS_THEY_ARE).digest for data in (plain, commented, other)]

    assert digests[0] == digests[1] != digests[2]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_done_to_an_image_it_is_refused_or_can_be_decoded(tools, data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]))
    image = bytearray(tools.encoded(tools.picture(8), kind))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(image) - 1))
        image[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(image)))
    with contextlib.suppress(Rejected):
        checked = check_image(bytes(image[:cut]), AS_THEY_ARE)
        pixels = simplejpeg.decode_jpeg(checked.data, strict=True)
        assert pixels.shape == (checked.height, checked.width, 3)


def test_real_photos_are_stored_untouched(shared):
    for path in sorted((shared / "data/coco_sample/images").iterdir())[:10]:
        data = path.read_bytes()
        assert check_image(data, ImageOptions()).data == data
