"""Draw docs/images/pairs.png: scenes of the demonstration, each with a text that belongs to it.

python docs/images/pairs.py docs/images/pairs.png
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageDraw, ImageFont

from vse_shards.demo import make_demo

COLUMNS, ROWS, WIDTH, HEIGHT, GAP, TEXT = 4, 2, 186, 146, 14, 66


def main(out: str) -> None:
    """Draw the first scenes; the same bytes on every machine with the same Pillow."""
    page = Image.new("RGB", (GAP + COLUMNS * (WIDTH + GAP), GAP + ROWS * (HEIGHT + TEXT)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    with TemporaryDirectory() as folder:
        make_demo(Path(folder), images=40)
        lines = Path(folder, "captions.jsonl").read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines[: COLUMNS * ROWS]):
            record = json.loads(line)
            row, column = divmod(number, COLUMNS)
            left, top = GAP + column * (WIDTH + GAP), GAP + row * (HEIGHT + TEXT)
            with Image.open(Path(folder, record["image"])) as scene:
                page.paste(scene.resize((WIDTH, HEIGHT)), (left, top))
            text = textwrap.fill(min(record["captions"], key=len), 33)
            pen.multiline_text((left, top + HEIGHT + 4), text, "black", font)
    page.quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
