"""Synthetic images with captions: drawn scenes of two or three objects, learnable in minutes.

A scene is a textured background with objects that differ in shape, colour, size and place, and
five captions that each name all objects in different wordings. A caption fits exactly one scene:
no two scenes of a set have the same objects. Scene ``i`` of a seed is always the same.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.random import Generator, Philox
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from vse_shards.errors import OutputError
from vse_shards.progress import Progress, say

COLOURS = {
    "red": (215, 35, 40),
    "green": (35, 160, 55),
    "blue": (40, 75, 220),
    "yellow": (240, 220, 45),
    "purple": (145, 45, 185),
    "orange": (245, 135, 25),
    "white": (248, 248, 248),
    "black": (18, 18, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "bar")
# Radius as a share of the longer side: still legible after resizing the scene to 96 x 96.
SIZES = {"big": 17.5 / 96, "small": 10.0 / 96}
PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))  # row and column of a quadrant
VALIDATION_IMAGES = 500

_SIDES = (112, 176)  # pixels, shortest and longest side of a scene
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    size: str
    colour: str
    shape: str
    place: tuple[int, int]

    @property
    def noun(self) -> str:
        """Noun phrase, such as ``big red circle``."""
        return f"{self.size} {self.colour} {self.shape}"

    @property
    def corner(self) -> str:
        """Corner of the scene, such as ``top left``."""
        return f"{('top', 'bottom')[self.place[0]]} {('left', 'right')[self.place[1]]}"


@dataclass(frozen=True)
class Scene:
    """Objects of one image in drawing order, and its captions."""

    things: tuple[Thing, ...]
    captions: tuple[str, ...]


def make_demo(out: Path, images: int = 3500, seed: int = 0) -> None:
    """Write ``images`` scenes as a ``jsonl`` source: ``images/`` and ``captions.jsonl``.

    The last 500 (of fewer than 2,500: the last fifth) are split ``val``, the others ``train``.

    Raises:
        OutputError: the folder contains other files, or cannot be written.
    """
    if images < 1:
        raise OutputError(f"--images is {images}; at least 1 scene can be drawn")
    try:
        others = {p.name for p in out.iterdir()} - {"images", "captions.jsonl"}
    except FileNotFoundError:
        others = set()
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from error
    if others:
        raise OutputError(
            f"{out}: contains other files ({min(others)}); choose an empty or new folder"
        )
    training = images - min(VALIDATION_IMAGES, images // 5)
    say(f"drawing {images:,} scenes into {out}")
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
        with (
            Progress("drawing", images, "scenes") as progress,
            (out / "captions.jsonl").open("w", encoding="utf-8") as rows,
        ):
            for number, scene in enumerate(make_scenes(images, seed)):
                name = f"images/{number:06d}.jpg"
                (out / name).write_bytes(draw_scene(scene, _rng(seed, number, stream=1)))
                row = {
                    "image": name,
                    "image_id": number,
                    "split": "train" if number < training else "val",
                    "captions": scene.captions,
                }
                rows.write(json.dumps(row) + "\n")
                progress.update(number + 1)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from error
    say(
        f"drew {training:,} scenes to train on and {images - training:,} to validate on in "
        f"{progress.seconds:.1f} s"
    )


def make_scenes(count: int, seed: int) -> list[Scene]:
    """Return ``count`` scenes, no two of which have the same objects."""
    seen: set[frozenset[Thing]] = set()
    scenes = []
    for number in range(count):
        rng = _rng(seed, number, stream=0)
        things = _things(rng)
        while frozenset(things) in seen:
            things = _things(rng)
        seen.add(frozenset(things))
        scenes.append(Scene(things, _captions(things, rng)))
    return scenes


def draw_scene(scene: Scene, rng: Generator) -> bytes:
    """Draw a scene as a JPEG of 112 to 176 pixels a side."""
    long, short = sorted(rng.integers(_SIDES[0], _SIDES[1] + 1, 2), reverse=True)
    short = max(
        short, round(long / 1.2)
    )  # after resizing to a square, objects stay about as wide as high
    height, width = (long, short) if rng.random() < 0.5 else (short, long)
    canvas = Image.fromarray(_background(int(height), int(width), rng))
    for thing in scene.things:
        _draw(canvas, thing, rng)
    noise = rng.normal(0, 4, (int(height), int(width), 1))
    pixels = np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8)
    quality = int(rng.integers(82, 96))
    jpeg: bytes = simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")
    return jpeg


def _rng(seed: int, number: int, stream: int) -> Generator:
    return Generator(Philox(key=[seed, 2 * number + stream]))


def _things(rng: Generator) -> tuple[Thing, ...]:
    places = rng.permutation(len(PLACES))[: rng.integers(2, 4)]
    return tuple(
        Thing(
            size=list(SIZES)[rng.integers(len(SIZES))],
            colour=list(COLOURS)[rng.integers(len(COLOURS))],
            shape=SHAPES[rng.integers(len(SHAPES))],
            place=PLACES[place],
        )
        for place in places
    )


def _background(height: int, width: int, rng: Generator) -> NDArray[np.uint8]:
    """Return a dull colour with soft blotches, light from one side, and a fine weave."""
    grey = rng.uniform(95, 165)
    colour = grey + rng.uniform(-18, 18, 3)
    coarse = (rng.normal(0, 8, (6, 6, 1)) + rng.normal(0, 4, (6, 6, 3))).astype(np.float32)
    fine = rng.normal(0, 6, (24, 24)).astype(np.float32)
    light = rng.uniform(-14, 14, 2)
    rows = np.linspace(-1, 1, height)[:, None] * light[0]
    columns = np.linspace(-1, 1, width)[None] * light[1]
    channels = [
        colour[c] + _enlarge(coarse[..., c], height, width) + rows + columns for c in range(3)
    ]
    weave = _enlarge(fine, height, width)[..., None]
    return np.clip(np.stack(channels, -1) + weave, 60, 190).astype(np.uint8)


def _enlarge(field: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC))


def _draw(canvas: Image.Image, thing: Thing, rng: Generator) -> None:
    """Draw one object with an antialiased edge, soft shading and a faint shadow."""
    width, height = canvas.size
    radius = SIZES[thing.size] * max(width, height) * rng.uniform(0.95, 1.05)
    row, column = thing.place
    x = (column + 0.5) * width / 2 + rng.uniform(-4, 4) * width / 96
    y = (row + 0.5) * height / 2 + rng.uniform(-4, 4) * height / 96
    side = 2 * math.ceil(radius) + 4
    mask = _mask(thing.shape, side, radius, rng.uniform(-0.12, 0.12))
    corner = round(x - side / 2), round(y - side / 2)
    colour = np.array(COLOURS[thing.colour]) + rng.uniform(-10, 10, 3)
    shade = np.linspace(10, -10, side)[:, None, None] + rng.normal(0, 3, (side, side, 1))
    paint = Image.fromarray(np.clip(colour + shade, 0, 255).astype(np.uint8))
    shadow = mask.filter(ImageFilter.GaussianBlur(2)).point([value // 3 for value in range(256)])
    canvas.paste((40, 40, 45), (corner[0] + 2, corner[1] + 2), shadow)
    canvas.paste(paint, corner, mask)


def _mask(shape: str, side: int, radius: float, turn: float) -> Image.Image:
    """Return a shape's coverage of a square of ``side`` pixels, 0 to 255, by supersampling."""
    scale = _SUPERSAMPLING
    mask = Image.new("L", (side * scale, side * scale))
    pen = ImageDraw.Draw(mask)
    middle, r = side * scale / 2, radius * scale
    cos, sin = math.cos(turn), math.sin(turn)

    def polygon(*points: tuple[float, float]) -> None:
        pen.polygon(
            [
                (middle + r * (x * cos - y * sin), middle + r * (x * sin + y * cos))
                for x, y in points
            ],
            fill=255,
        )

    def box(half_width: float, half_height: float) -> None:
        w, h = half_width, half_height
        polygon((-w, -h), (w, -h), (w, h), (-w, h))

    if shape in ("circle", "ring"):
        pen.ellipse([middle - r, middle - r, middle + r, middle + r], fill=255)
        if shape == "ring":
            hole = 0.62 * r
            pen.ellipse([middle - hole, middle - hole, middle + hole, middle + hole], fill=0)
    elif shape == "square":
        box(0.88, 0.88)
    elif shape == "triangle":
        polygon((0, -1), (-0.95, 0.85), (0.95, 0.85))
    elif shape == "diamond":
        polygon((0, -1), (-0.75, 0), (0, 1), (0.75, 0))
    elif shape == "cross":
        box(1, 0.3)
        box(0.3, 1)
    elif shape == "bar":
        box(1, 0.32)
    else:  # star
        angles = [math.pi * k / 5 - math.pi / 2 for k in range(10)]
        polygon(
            *(
                ((1, 0.42)[k % 2] * math.cos(a), (1, 0.42)[k % 2] * math.sin(a))
                for k, a in enumerate(angles)
            )
        )
    return mask.reduce(scale)


def _captions(things: tuple[Thing, ...], rng: Generator) -> tuple[str, ...]:
    """Return five captions in five wordings, each naming every object with its place."""
    wordings = rng.permutation(len(_WORDINGS))[:5]
    captions = []
    for wording in wordings:
        order = [things[k] for k in rng.permutation(len(things))]
        captions.append(_WORDINGS[wording](order))
    return tuple(captions)


def _plain(things: list[Thing]) -> str:
    return "A " + " and a ".join(f"{t.noun} at the {t.corner}" for t in things) + "."


def _corners(things: list[Thing]) -> str:
    return "There is " + ", ".join(f"a {t.noun} in the {t.corner} corner" for t in things) + "."


def _labels(things: list[Thing]) -> str:
    return ", ".join(f"{t.corner}: {t.noun}" for t in things)


def _places_first(things: list[Thing]) -> str:
    return "A picture with " + " and ".join(f"at the {t.corner} a {t.noun}" for t in things) + "."


def _seen(things: list[Thing]) -> str:
    return "In the " + ", in the ".join(f"{t.corner} we see a {t.noun}" for t in things) + "."


def _related(things: list[Thing]) -> str:
    text = f"A {things[0].noun} at the {things[0].corner}"
    for before, thing in itertools.pairwise(things):
        text += f", {_relation(before, thing)} a {thing.noun} at the {thing.corner}"
    return text + "."


def _relation(before: Thing, after: Thing) -> str:
    """Return the position of ``after`` relative to ``before``, sideways where they differ in it."""
    if before.place[1] != after.place[1]:
        return "to its right" if after.place[1] else "to its left"
    return "below it" if after.place[0] else "above it"


_WORDINGS = (_plain, _corners, _labels, _places_first, _seen, _related)
