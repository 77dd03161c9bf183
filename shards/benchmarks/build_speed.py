"""Images a second of `vse-shards build` against what people use instead; same input, two processes.

    python shards/benchmarks/build_speed.py --photos DIR [--img2dataset PYTHON]

`--photos` is a folder of JPEGs of ordinary size; the input is cut from them at random, so that no
two images are equal. `--img2dataset` is the interpreter of an environment that has img2dataset,
which wants packages that this project does not:

    python -m venv ENV && ENV/bin/pip install img2dataset
"""

from __future__ import annotations

import argparse
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
    """Cut ``count`` different images out of photos; gives the jsonl file."""
    draws = np.random.default_rng(0)
    names = sorted(photos.glob("*.jpg"))
    if not names:
        sys.exit(f"{photos}: has no .jpg")
    with (folder / "rows.jsonl").open("w") as rows:
        for number in range(count):
            photo = Image.open(names[number % len(names)]).convert("RGB")
            x, y = (int(draws.integers(0, side // 8)) for side in photo.size)
            crop = photo.crop((x, y, photo.width - side_off(x), photo.height - side_off(y)))
            path = folder / f"{number:06d}.jpg"
            crop.save(path, quality=QUALITY)
            row = {"image": path.name, "captions": ["words"], "caption": "words"}
            rows.write(json.dumps({**row, "url": path.as_uri()}) + "\n")
    return folder / "rows.jsonl"


def side_off(offset: int) -> int:
    """How much is cut from the other side, so that all crops differ."""
    return (offset * 7) % 11


def ours(rows: Path, out: Path, side: int | None) -> None:
    """Build with `vse-shards`: checked strictly, shuffled, indexed, synced to disk."""
    arguments = ["build", "--source", "jsonl", "--input", rows, "--out", out]
    arguments += ["--workers", PROCESSES, "--shard-samples", SHARD, "--quality", QUALITY]
    if side is not None:
        arguments += ["--max-side", side]
    code = "from vse_shards.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


def by_hand(rows: Path, out: Path, side: int | None) -> None:
    """Write shards as people do: Pillow decodes and encodes, ShardWriter packs."""
    out.mkdir()
    lines = rows.read_text().splitlines()
    shares = [(lines[k::PROCESSES], rows.parent, out, k, side) for k in range(PROCESSES)]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.starmap(_by_hand_share, shares)


def _by_hand_share(
    lines: Sequence[str], folder: Path, out: Path, share: int, side: int | None
) -> None:
    import webdataset  # here, so that starting the other contestants does not pay for it

    pattern = str(out / f"{share}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=SHARD, verbose=0) as writer:
        for number, line in enumerate(lines):
            row = json.loads(line)
            image = Image.open(folder / row["image"]).convert("RGB")
            if side is not None and max(image.size) > side:
                scale = side / max(image.size)
                size = round(image.width * scale), round(image.height * scale)
                image = image.resize(size, Image.Resampling.LANCZOS)
            file = io.BytesIO()
            image.save(file, "JPEG", quality=QUALITY)
            captions = {"captions": row["captions"]}
            writer.write({"__key__": f"{number:08d}", "jpg": file.getvalue(), "json": captions})


def img2dataset(python: str) -> Callable[[Path, Path, int | None], None]:
    """Give a runner of img2dataset's resizer on local files."""

    def run(rows: Path, out: Path, side: int | None) -> None:
        arguments = [python, "-c", IMG2DATASET, str(rows), str(out), str(side)]
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)

    return run


def processor_seconds() -> float:
    """CPU time of this process and of all its children that ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    """Measure all, print a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--img2dataset", metavar="PYTHON")
    arguments = parser.parse_args()
    runs: list[tuple[str, Callable[[Path, Path, int | None], None], int | None]] = [
        ("vse-shards, checked", ours, None),
        ("ShardWriter + Pillow, re-encoded", by_hand, None),
        (f"vse-shards, checked and shrunk to {arguments.side}", ours, arguments.side),
        (f"ShardWriter + Pillow, shrunk to {arguments.side}", by_hand, arguments.side),
    ]
    if arguments.img2dataset:
        runs.append(
            (
                f"img2dataset, shrunk to {arguments.side}",
                img2dataset(arguments.img2dataset),
                arguments.side,
            )
        )
    rates: dict[str, list[float]] = {name: [] for name, _, _ in runs}
    costs: dict[str, list[float]] = {name: [] for name, _, _ in runs}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "input"
        folder.mkdir()
        rows = make_input(arguments.photos, arguments.images, folder)
        for repeat in range(arguments.repeats):
            for name, run, side in runs:  # in turns, so that a busy moment hits all alike
                out = Path(scratch) / f"out{repeat}-{len(os.listdir(scratch))}"
                started, used = time.perf_counter(), processor_seconds()
                run(rows, out, side)
                rates[name].append(arguments.images / (time.perf_counter() - started))
                costs[name].append((processor_seconds() - used) * 1000 / arguments.images)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {arguments.images} images")
    for name, values in rates.items():
        print(
            f"{name:40} {np.median(values):6.0f} images/s ({min(values):.0f}-{max(values):.0f}), "
            f"{np.median(costs[name]):5.2f} CPU-ms an image"
        )
    print(json.dumps({"images_per_second": rates, "cpu_ms_per_image": costs}))


if __name__ == "__main__":
    main()
