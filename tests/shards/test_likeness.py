"""Pictures that look alike, against copies that are known to be of one picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from archives import encoded
from memory import run_alone
from PIL import Image, ImageDraw, ImageEnhance

from vse_shards.likeness import LOOK, first_alike, look_of

STRANGERS = 400


def picture(seed):
    """A picture with edges and a gradient, unlike that of any other seed."""
    draws = np.random.default_rng(seed)
    coarse = Image.fromarray(draws.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = coarse.resize((320, 240), Image.Resampling.BICUBIC)
    for _ in range(4):
        x, y, w, h = (int(v) for v in draws.integers(20, 150, 4))
        ImageDraw.Draw(image).rectangle((x, y, x + w, y + h), tuple(draws.integers(0, 256, 3)))
    return image


def turned(image):
    """The same picture, stored on its side with the Exif tag that sets it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), exif=exif)


def stamped(image):
    image = image.copy()
    ImageDraw.Draw(image).text((10, 10), "(c) Photo Agency", fill=(255, 255, 255))
    return encoded(image)


COPIES = {
    "quality 30": lambda image: encoded(image, quality=30),
    "half the size, as PNG": lambda image: encoded(image.resize((160, 120)), "PNG"),
    "a square": lambda image: encoded(image.resize((256, 256))),
    "WebP": lambda image: encoded(image, "WEBP", quality=60),
    "progressive": lambda image: encoded(image, progressive=True),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.1)),
    "more contrast": lambda image: encoded(ImageEnhance.Contrast(image).enhance(1.2)),
    "stamped": stamped,
    "turned by its tag": turned,
}


@pytest.fixture(scope="module")
def strangers():
    return np.stack([look_of(encoded(picture(seed))) for seed in range(STRANGERS)])


def test_strangers_are_not_alike(strangers):
    assert first_alike(strangers).tolist() == list(range(STRANGERS))


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_known_among_strangers(strangers, copy):
    """Sizes of one photo (kungfuai/kaishi#1), RSITMD in RSICD (ChenDelong1999/RemoteCLIP#26)."""
    some = range(0, STRANGERS, 16)
    copies = np.stack([look_of(COPIES[copy](picture(seed))) for seed in some])
    found = first_alike(np.concatenate([strangers, copies]))
    assert found[:STRANGERS].tolist() == list(range(STRANGERS))
    right = (found[STRANGERS:] == np.array(some)).sum()
    assert right >= len(copies) - 1


def test_pictures_that_show_nothing_are_alike_only_where_pixels_are_equal():
    """Pictures on one plain background all had one hash (deepchecks/deepchecks#1243)."""
    flat = [encoded(Image.new("RGB", (64, 48), (250, 250, v)), "PNG") for v in range(240, 250)]
    again = encoded(Image.open(io.BytesIO(flat[3])), "BMP")
    looks = np.stack([look_of(data) for data in [*flat, again, b"<html>", b"<xml>", b"<html>"]])
    assert first_alike(looks).tolist() == [*range(10), 3, 11, 12, 11]


def test_a_chain_of_likeness_is_one_group():
    looks = np.zeros(60, LOOK)
    looks["pixels"] = np.arange(60)
    base = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    looks["colours"] = base
    looks["shape"] = [(1 << n) - 1 for n in range(60)]  # each differs from the next in one bit
    assert first_alike(looks).tolist() == [0] * 60
    looks["colours"][30:] = 255 - base
    assert first_alike(looks).tolist() == [0] * 30 + [30] * 30


def test_many_looks_take_little_memory_and_are_all_compared():
    """200,000 pictures with 500 copies far from their originals, each with three bits changed."""
    code = """
import numpy as np
from memory import forget_peak, peak_memory
from vse_shards.likeness import LOOK, first_alike
draws, n = np.random.default_rng(0), 200_000
looks = np.zeros(n, LOOK)
looks["shape"] = draws.integers(0, 2**64, n, dtype=np.uint64)
looks["pixels"] = np.arange(n)
looks["colours"] = draws.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
looks[-500:] = looks[:500]
looks["pixels"][-500:] += n
bits = np.stack([draws.choice(64, 3, replace=False) for _ in range(500)]).astype(np.uint64)
looks["shape"][-500:] ^= np.bitwise_or.reduce(np.uint64(1) << bits, axis=1)
before = forget_peak()
first = first_alike(looks)
after = peak_memory()
print((first[-500:] == np.arange(500)).mean(), (first[:-500] == np.arange(n - 500)).all())
print((after - before) / n)
"""
    found, alone, taken = run_alone(code)
    assert (found, alone) == ("1.0", "True")
    assert float(taken) < 200  # bytes a picture
