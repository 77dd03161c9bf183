"""CPU time of `vse-shards build` against that of a former commit: same input, pairs of builds.

    git worktree add FORMER COMMIT
    python shards/benchmarks/former_speed.py --former FORMER/shards --photos DIR [--csv FILE]

`--photos` is a folder of photos; the inputs are cropped from them: JPEGs of 256 pixels a side, and
of 640 x 480, the size of COCO's. They are built from JSON lines, and the small ones also from a
table of a row per caption, five an image. The two versions take turns, and which is first
alternates, so that other load on the machine affects both alike. The figures are medians over the
pairs; both versions must write equal shards.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parents[1]
CODE = "from vse_shards.cli import main; main()"


@dataclass(frozen=True)
class Case:
    """One input: its source, the number and the size of its images, and where the rows are."""

    name: str
    source: str
    images: int
    size: tuple[int, int]
    rows: str


def cases(small: int, large: int) -> list[Case]:
    """Return the inputs for a number of small and of large images."""
    return [
        Case("256 px, JSON lines", "jsonl", small, (256, 256), "rows.jsonl"),
        Case("256 px, csv of five rows an image", "csv", small, (256, 256), "rows.csv"),
        Case("640 x 480, JSON lines", "jsonl", large, (640, 480), "rows.jsonl"),
    ]


def make_input(photos: Path, case: Case, folder: Path) -> Path:
    """Crop different images from photos, write a table of them, and return its path."""
    names = sorted(photos.rglob("*.jpg"))
    if not names:
        sys.exit(f"{photos}: has no .jpg")
    with (folder / case.rows).open("w", newline="") as file:
        table = csv.writer(file)
        if case.source == "csv":
            table.writerow(["image", "caption"])
        for number in range(case.images):
            path = folder / f"{number:06d}.jpg"
            photo = Image.open(names[number % len(names)]).convert("RGB")
            x, y = divmod(number // len(names), 32)  # no two crops of a photo are equal
            crop = photo.crop((x, y, photo.width - y, photo.height - x))
            crop.resize(case.size, Image.Resampling.BICUBIC).save(path, quality=90)
            captions = [f"wording {k} of photo {number}" for k in range(5)]
            if case.source == "csv":
                table.writerows([path.name, caption] for caption in captions)
            else:
                file.write(json.dumps({"image": path.name, "captions": captions}) + "\n")
    return folder / case.rows


def build(tree: Path, case: Case, rows: Path, out: Path, workers: int) -> tuple[float, float]:
    """Build with the package below ``tree``; return seconds, and CPU seconds of all processes."""
    arguments = ["--source", case.source, "--input", rows, "--out", out, "--workers", workers]
    before, started = _children(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", CODE, "build", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started, _children() - before


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def digest(out: Path) -> str:
    """Return the digest of all shards of a dataset."""
    total = hashlib.sha256()
    for path in sorted(out.glob("*.tar")):
        total.update(path.read_bytes())
    return total.hexdigest()


def pairs(
    case: Case, rows: Path, trees: dict[str, Path], repeats: int, workers: int, scratch: Path
) -> list[dict[str, str | int | float]]:
    """Build by turns, once unmeasured; return a record of each build."""
    turns: list[dict[str, str | int | float]] = []
    written = {}
    for turn in range(-1, repeats):
        for name in sorted(trees, reverse=turn % 2 == 0):
            out = scratch / f"{case.source}{case.size[0]}-{turn}-{name}"
            seconds, cpu = build(trees[name], case, rows, out, workers)
            if turn < 0:
                written[name] = digest(out)
            else:
                turns.append(
                    {
                        **{"case": case.name, "version": name, "turn": turn},
                        **{"images": case.images, "seconds": seconds, "cpu_seconds": cpu},
                    }
                )
            for path in out.iterdir():
                path.unlink()
    if len(set(written.values())) > 1:
        sys.exit(f"{case.name}: the versions write different shards, so their times say nothing")
    return turns


def report(case: Case, turns: list[dict[str, str | int | float]]) -> None:
    """Print medians, and the median and range of the pairs' ratios, now to former."""
    for column in ("cpu_seconds", "seconds"):
        now, former = (
            [float(turn[column]) for turn in turns if turn["version"] == version]
            for version in ("now", "former")
        )
        ratios = [a / b for a, b in zip(now, former, strict=True)]
        print(
            f"{case.name:34} {case.images:6,} images, {column:11} now "
            f"{statistics.median(now):6.2f}, former {statistics.median(former):6.2f}; ratio "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        )


def main() -> None:
    """Measure all cases, print a line of each, and write every turn to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--former", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--small", type=int, default=5000)
    parser.add_argument("--large", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    trees = {"now": HERE, "former": arguments.former.resolve()}
    print(f"{platform.machine()}, {os.cpu_count()} cores, {arguments.workers} workers")
    turns = []
    for case in cases(arguments.small, arguments.large):
        with tempfile.TemporaryDirectory() as name:
            (folder := Path(name) / "input").mkdir()
            rows = make_input(arguments.photos, case, folder)
            found = pairs(case, rows, trees, arguments.repeats, arguments.workers, Path(name))
        report(case, found)
        turns += found
    if arguments.csv is not None:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, turns[0])
            writer.writeheader()
            writer.writerows(turns)


if __name__ == "__main__":
    main()
