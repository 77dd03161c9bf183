"""Images per second of `vse-shards build` and its peers: same input, two processes.

    python shards/benchmarks/build_speed.py --photos DIR [--img2dataset PYTHON] [--csv FILE]

`--photos` is a folder of JPEGs of ordinary size; the input is cropped from them, so that no two
images are equal. `--img2dataset` is the interpreter of an environment with img2dataset, which needs
other packages than this project:

    python -m venv ENV && ENV/bin/pip install img2dataset opencv-python-headless

The builders take turns, so that other load on the machine affects all alike. The figures are
medians over the turns of one builder's rate divided by another's.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

PROCESSES = 2
QUALITY = 90
SHARD = 250

IMG2DATASET = f"""
import sys
from img2dataset import download
rows, out, side = sys.argv[1:]
download(
    url_list=rows, input_format="jsonl", url_col="url", caption_col="caption",
    output_folder=out, output_format="webdataset", processes_count={PROCESSES}, thread_count=4,
    number_sample_per_shard={SHARD}, image_size=int(side), resize_mode="keep_ratio_largest",
    resize_only_if_bigger=True, encode_quality={QUALITY}, enable_wandb=False,
)
"""


def make_input(photos: Path, count: int, folder: Path) -> Path:
    """Crop ``count`` different images from photos; return the jsonl file."""
    names = sorted(photos.glob("*.jpg"))
    if not names:
        sys.exit(f"{photos}: has no .jpg")
    with (folder / "rows.jsonl").open("w") as rows:
        for number in range(count):
            photo = Image.open(names[number % len(names)]).convert("RGB")
            x, y = divmod(number // len(names), 32)  # no two crops of a photo are equal
            crop = photo.crop((x, y, photo.width - y, photo.height - x))
            path = folder / f"{number:06d}.jpg"
            crop.save(path, quality=QUALITY)
            row = {"image": path.name, "captions": ["words"], "caption": "words"}
            rows.write(json.dumps({**row, "url": path.as_uri()}) + "\n")
    return folder / "rows.jsonl"


def ours(rows: Path, out: Path, side: int | None) -> None:
    """Build with `vse-shards`: checked strictly, shuffled, indexed, synced to disk."""
    arguments = ["build", "--source", "jsonl", "--input", rows, "--out", out]
    arguments += ["--workers", PROCESSES, "--shard-samples", SHARD, "--quality", QUALITY]
    if side is not None:
        arguments += ["--max-side", side]
    code = "from vse_shards.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


def by_hand(
    rows: Path, out: Path, side: int | None, *, filter: Image.Resampling = Image.Resampling.LANCZOS
) -> None:
    """Write shards by the usual script: Pillow decodes and encodes, ShardWriter packs."""
    out.mkdir()
    lines = rows.read_text().splitlines()
    shares = [(lines[k::PROCESSES], rows.parent, out, k, side, filter) for k in range(PROCESSES)]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.starmap(_by_hand_share, shares)


def _by_hand_share(
    lines: Sequence[str],
    folder: Path,
    out: Path,
    share: int,
    side: int | None,
    filter: Image.Resampling,
) -> None:
    import webdataset  # here: its import takes a second, which other builders must not pay

    pattern = str(out / f"{share}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=SHARD, verbose=0) as writer:
        for number, line in enumerate(lines):
            row = json.loads(line)
            image = Image.open(folder / row["image"]).convert("RGB")
            if side is not None and max(image.size) > side:
                scale = side / max(image.size)
                size = round(image.width * scale), round(image.height * scale)
                image = image.resize(size, filter)
            file = io.BytesIO()
            image.save(file, "JPEG", quality=QUALITY)
            captions = {"captions": row["captions"]}
            writer.write({"__key__": f"{number:08d}", "jpg": file.getvalue(), "json": captions})


def img2dataset(python: str) -> Callable[[Path, Path, int | None], None]:
    """Return a runner of img2dataset's resizer on local files."""

    def run(rows: Path, out: Path, side: int | None) -> None:
        arguments = [python, "-c", IMG2DATASET, str(rows), str(out), str(side)]
        offline = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, env=offline)

    return run


def processor_seconds() -> float:
    """CPU time of this process and of all its children that ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


Run = Callable[[Path, Path, int | None], None]


@dataclass(frozen=True)
class Turn:
    """Result of one builder in one turn; ``implementation`` is its name, a column of the CSV."""

    implementation: str
    turn: int
    images: int
    seconds: float
    images_per_second: float
    cpu_ms_per_image: float


def builders(side: int, python: str | None) -> dict[str, tuple[Run, int | None]]:
    """Return all builders, each with the longest side of its images."""
    bicubic = partial(by_hand, filter=Image.Resampling.BICUBIC)
    runs: dict[str, tuple[Run, int | None]] = {
        "vse-shards, checked": (ours, None),
        "ShardWriter + Pillow, re-encoded": (by_hand, None),
        f"vse-shards, checked and shrunk to {side}": (ours, side),
        f"ShardWriter + Pillow, shrunk to {side}, Lanczos": (by_hand, side),
        f"ShardWriter + Pillow, shrunk to {side}, bicubic": (bicubic, side),
    }
    if python is not None:
        runs[f"img2dataset, shrunk to {side}"] = (img2dataset(python), side)
    return runs


def take_turns(
    runs: dict[str, tuple[Run, int | None]], rows: Path, images: int, repeats: int, scratch: Path
) -> list[Turn]:
    """Run every builder ``repeats`` times."""
    turns = []
    for turn in range(repeats):
        for number, (name, (run, side)) in enumerate(runs.items()):
            started, used = time.perf_counter(), processor_seconds()
            run(rows, scratch / f"out{turn}-{number}", side)
            seconds, cpu = time.perf_counter() - started, processor_seconds() - used
            turns.append(Turn(name, turn, images, seconds, images / seconds, cpu * 1000 / images))
    return turns


def report(turns: list[Turn], side: int) -> None:
    """Print medians, and ratios to vse-shards."""
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    for turn in turns:
        rates.setdefault(turn.implementation, []).append(turn.images_per_second)
        costs.setdefault(turn.implementation, []).append(turn.cpu_ms_per_image)
    for name, values in rates.items():
        own = f"vse-shards, checked and shrunk to {side}" if "shrunk" in name else next(iter(rates))
        ratio = np.median(np.array(rates[own]) / np.array(values))
        cheaper = np.median(np.array(costs[name]) / np.array(costs[own]))
        print(
            f"{name:46} {np.median(values):5.0f} images/s ({min(values):.0f}-{max(values):.0f}), "
            f"{np.median(costs[name]):5.2f} CPU-ms per image; vse-shards is {ratio:.2f}x as fast, "
            f"at 1/{cheaper:.2f} of the CPU time"
        )


def main() -> None:
    """Measure all builders, print a table, and write every turn to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--img2dataset", metavar="PYTHON")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    runs = builders(arguments.side, arguments.img2dataset)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "input").mkdir()
        rows = make_input(arguments.photos, arguments.images, scratch / "input")
        turns = take_turns(runs, rows, arguments.images, arguments.repeats, scratch)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {arguments.images} images")
    report(turns, arguments.side)
    if arguments.csv is not None:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(vars(turns[0]))
            writer.writerows(vars(turn).values() for turn in turns)


if __name__ == "__main__":
    main()
