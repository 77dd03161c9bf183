"""Stage ``shards``: build a dataset, beside the usual alternatives.

The script ``shards/benchmarks/build_speed.py`` measures; it also runs alone, and describes its
comparison.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator

from vse_scale.bench.job import Job
from vse_scale.bench.rows import Row, row
from vse_scale.bench.scripts import run_script
from vse_scale.bench.setting import open_split


def measure(job: Job) -> Iterator[list[Row]]:
    """Yield the rows of images stored unchanged, and of images shrunk."""
    dataset = open_split(job.config, "train")
    photos, out = job.scratch / "photos", job.scratch / "shards.csv"
    photos.mkdir(exist_ok=True)
    for image in range(min(len(dataset), 8 if job.small else 512)):
        (photos / f"{image:06d}.jpg").write_bytes(dataset.image_bytes(image).tobytes())
    first = dataset.record(0)
    longest = max(first.width, first.height)
    side = 256 if longest > 256 else longest // 2
    run_script(
        "shards/benchmarks/build_speed.py",
        [
            *("--photos", photos, "--images", 16 if job.small else 1500),
            *("--repeats", job.repeats, "--side", side, "--csv", out),
        ],
    )
    rates: dict[str, list[float]] = defaultdict(list)
    with out.open(newline="") as file:
        for turn in csv.DictReader(file):
            rates[turn["implementation"]].append(float(turn["images_per_second"]))
    for case, peer, names in cases(list(rates)):
        yield [
            row(
                job, "shards", case, name.replace("vse-shards", "vse_scale"), peer=peer,
                unit="images/s", values=rates[name], peer_values=rates[peer],
            )
            for name in names
        ]  # fmt: skip


def cases(names: list[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each case with its peer and implementations; the peer uses our resampling filter."""
    whole = [name for name in names if "shrunk" not in name]
    shrunk = [name for name in names if "shrunk" in name]
    yield "stored", next(name for name in whole if "ShardWriter" in name), whole
    yield "shrunk", next(name for name in shrunk if "bicubic" in name), shrunk
