"""The experiment of docs/photos.md: each command appends a row a seed to a CSV file.

python launch/photos_experiment.py heads [--image POOL] [--text POOL] [--seeds N ...] ...
python launch/photos_experiment.py recipe NAME [section.key=value ...] [--seeds N ...]
    A value may hold {seed}: model.init_from=runs/photos-rows/recipe-{seed} goes on from a row.
python launch/photos_experiment.py held PHOTOS [--seeds N ...]
python launch/photos_experiment.py plot

`heads` trains a Linear and a pooling for each side over the frozen states of both towers, in plain
torch, without augmentation of captions; `recipe` trains launch/recipes/photos.yaml with changes.
Both take what `make photos` left in data/photos, and rank its validation split. `held` keeps 500 of
the photos to train on aside, trains the recipe on the others, and ranks these 500 as well. `plot`
draws all rows, and writes their table into docs/photos.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from photo_heads import LAYERS, OBJECTIVES, Settings, states_of, train_heads
from photos import Refused

DATA = Path("data/photos")
RECIPE = Path("launch/recipes/photos.yaml")
HELD = Path("data/photos-held")
ROWS = Path("docs/photos/rows.csv")
PLOT = Path("docs/photos/rows.svg")
PAGE = Path("docs/photos.md")
BEGIN, END = "<!-- rows -->\n", "<!-- end of rows -->\n"  # of the table in the page

Recalls = tuple[float, float, float]  # at 1 of images and of captions, and RSUM, in percent


@dataclass(frozen=True)
class Row:
    """One training: recalls at 1 and their sum RSUM in percent, seconds of processor and clock."""

    row: str
    seed: int
    settings: str
    i2t_r1: float
    t2i_r1: float
    rsum: float
    cpu_seconds: float
    seconds: float


def train_recipe(name: str, changes: list[str], seed: int) -> Recalls:
    """Train the recipe with changes; return the best epoch's recalls on the validation split."""
    run = Path("runs/photos-rows") / f"{name}-{seed}"
    command = [sys.executable, "-m", "vse_scale.training", "--config", str(RECIPE)]
    changes = [change.replace("{seed}", str(seed)) for change in changes]
    subprocess.run([*command, f"run.dir={run}", f"run.seed={seed}", *changes], check=True)
    best = json.loads((run / "results.json").read_text())
    return best["i2t"]["r1"], best["t2i"]["r1"], best["rsum"]


def lay_out_held(photos: Path, out: Path, count: int = 500) -> None:
    """Build shards in ``out`` in which ``count`` of the photos to train on are split test.

    Args:
        photos: a folder with captions.jsonl, whose rows have a split, and with images/.
        out: folder of the shards, and of the table that they are built from.
        count: photos to keep aside, drawn once.

    Raises:
        Refused: there are no more to train on than that.
    """
    source = out / "source"
    source.mkdir(parents=True, exist_ok=True)
    lines = (photos / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    to_train = [row for row in rows if row.get("split") == "train"]
    if len(to_train) <= count:
        raise Refused(
            f"{photos} has {len(to_train)} photos of split train; more than {count} are needed"
        )
    for row in random.Random(0).sample(to_train, count):
        row["split"] = "test"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (source / "captions.jsonl").write_text(text, encoding="utf-8")
    command = [Path(sys.executable).with_name("vse-shards"), "build", "--source", "jsonl"]
    command += ["--input", source / "captions.jsonl", "--out", out / "shards"]
    command += ["--images", photos / "images"]
    subprocess.run([*map(str, command)], check=True)


def train_held(seed: int) -> dict[str, Recalls]:
    """Train the recipe on what is not held; return the recalls by split."""
    run = Path("runs/photos-held") / str(seed)
    train = [sys.executable, "-m", "vse_scale.training", "--config", str(RECIPE)]
    paths = [f"data.path={HELD}/shards", f"data.feature_cache={HELD}/features"]
    batch = "data.global_batch=1840"  # a quarter of 1,500 photos, five captions each
    subprocess.run([*train, *paths, batch, f"run.dir={run}", f"run.seed={seed}"], check=True)
    found = {}
    for split, name in (("val", "validation"), ("test", "held out")):
        out = run / f"{split}.json"
        command = [Path(sys.executable).with_name("vse-scale"), "eval", "--model", run]
        command += ["--data", HELD / "shards", "--split", split, "--json", out]
        subprocess.run([*map(str, command)], check=True)
        ranked = json.loads(out.read_text())
        found[f"recipe on 1,500 photos, {name}"] = (
            ranked["i2t"]["r1"],
            ranked["t2i"]["r1"],
            ranked["rsum"],
        )
    return found


def append(row: Row, path: Path) -> None:
    """Append a row to the CSV file, with the names of the columns if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(row)), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def seeds_by_row(rows: Path) -> dict[str, list[dict[str, str]]]:
    """Return the lines of each row, a line a seed; the row of the highest mean RSUM comes first."""
    found: dict[str, list[dict[str, str]]] = {}
    with rows.open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            found.setdefault(line["row"], []).append(line)
    by_rsum = sorted(found.items(), key=lambda row: -_mean(row[1], "rsum"))
    return dict(by_rsum)


def table(rows: Path) -> str:
    """Return every row as Markdown: means over the seeds, and the deviation of RSUM."""
    columns = ("seeds", "R@1 image to text", "R@1 text to image", "RSUM", "processor seconds")
    out = [f"| row | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, seeds in seeds_by_row(rows).items():
        r1 = " | ".join(f"{_mean(seeds, key):.1f}" for key in ("i2t_r1", "t2i_r1"))
        deviation = np.std([float(one["rsum"]) for one in seeds], ddof=1)
        rsum = f"{_mean(seeds, 'rsum'):.1f} ± {deviation:.1f}"
        out.append(f"| {name} | {len(seeds)} | {r1} | {rsum} | {_mean(seeds, 'cpu_seconds'):.0f} |")
    return "\n".join(out) + "\n"


def refresh(rows: Path, page: Path) -> None:
    """Put the table of the rows into the page, between its two marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + table(rows) + END + after, encoding="utf-8")


def plot(rows: Path, out: Path) -> None:
    """Draw every row's RSUM by name: a dot a seed, and a line at the mean."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    found = seeds_by_row(rows)
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.3 * len(found)), layout="constrained")
    for place, seeds in enumerate(reversed(found.values())):
        rsums = [float(one["rsum"]) for one in seeds]
        axes.plot(rsums, [place] * len(rsums), "o", color="#2a6f97")
        axes.plot(np.mean(rsums), place, "|", color="#2a6f97", markersize=16)
    # What most rows share is left out, so that the names leave room for the dots.
    names = [name.replace("image mean, text mean, ", "") for name in reversed(found)]
    names = [
        name.replace(", 5 of the captions", "").replace("former recipe", "former") for name in names
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("RSUM, validation split")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(out, metadata={"Date": None})


def _mean(seeds: list[dict[str, str]], key: str) -> float:
    return float(np.mean([float(one[key]) for one in seeds]))


def main() -> None:
    """Run one command."""
    options = parsed()
    if options.command == "plot":
        plot(ROWS, PLOT)
        refresh(ROWS, PAGE)
        return
    settings: dict[str, object] = {}
    train: Callable[[int], dict[str, Recalls]] = train_held
    if options.command == "held":
        lay_out_held(options.photos, HELD)
    elif options.command == "heads":
        for split in ("train", "val"):
            states_of(DATA, split)
        chosen = heads_of(options)
        settings = {k: getattr(chosen, k) for k in ("batch", "captions", "epochs", "rate")}
        settings |= changed(chosen)
        name = f"heads: image {chosen.image}, text {chosen.text}, {chosen.objective}, "
        name += f"{chosen.captions} of the captions"
        name += "".join(f", {key} {value}" for key, value in changed(chosen).items())
        train = named(name, partial(train_heads, DATA, chosen))
    else:
        settings = dict(change.split("=", 1) for change in options.changes)
        train = named(options.name, partial(train_recipe, options.name, options.changes))
    listed = " ".join(f"{key}={value}" for key, value in settings.items())
    for seed in options.seeds:
        began, before = time.monotonic(), sum(os.times()[:4])
        found = train(seed)
        times = sum(os.times()[:4]) - before, time.monotonic() - began
        for name, recalls in found.items():
            append(Row(name, seed, listed, *_short(*recalls, *times)), options.rows)


def named(name: str, train: Callable[[int], Recalls]) -> Callable[[int], dict[str, Recalls]]:
    """Return ``train`` with its recalls under the name of their row."""
    return lambda seed: {name: train(seed)}


def parsed() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    heads, recipe, held = map(commands.add_parser, ("heads", "recipe", "held"))
    commands.add_parser("plot")
    usual = Settings()
    heads.add_argument("--image", choices=["mean", "max", "gpo"], default=usual.image)
    heads.add_argument("--text", choices=["mean", "max", "gpo", "first"], default=usual.text)
    heads.add_argument("--objective", choices=OBJECTIVES, default=usual.objective)
    heads.add_argument("--whole", action="store_true", help="no size augmentation")
    heads.add_argument("--power", type=float, default=usual.power, help="of the cells")
    heads.add_argument("--layers", type=int, choices=range(1, LAYERS + 1), default=usual.layers)
    heads.add_argument("--drop", type=float, nargs=2, default=usual.drop, help="of both sides")
    for name in ("batch", "captions", "epochs", "size"):
        heads.add_argument(f"--{name}", type=int, default=getattr(usual, name))
    for name in ("rate", "pool_rate", "temperature"):
        default = getattr(usual, name)
        heads.add_argument(f"--{name.replace('_', '-')}", type=float, default=default)
    recipe.add_argument("name")
    recipe.add_argument("changes", nargs="*", metavar="section.key=value")
    held.add_argument("photos", type=Path, help="folder with captions.jsonl and images/")
    for one in (heads, recipe, held):
        one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        one.add_argument("--rows", type=Path, default=ROWS)
    options = parser.parse_args()
    if options.command in ("heads", "recipe") and not (DATA / "features").is_dir():
        parser.error(f"{DATA} has no features; make photos PHOTOS=DIR lays them out")
    if options.command == "held" and not (options.photos / "captions.jsonl").is_file():
        parser.error(f"{options.photos} has no captions.jsonl, whose rows name a split")
    if options.command == "heads":
        chosen = heads_of(options)
        if (chosen.power, chosen.layers) != (1, 1) and not (chosen.whole and chosen.means):
            heads.error("--power and --layers need --whole and mean pooling on both sides")
    return options


def heads_of(options: argparse.Namespace) -> Settings:
    """Return the settings that the command line gives."""
    given = {field.name: getattr(options, field.name) for field in fields(Settings)}
    return Settings(**{**given, "drop": tuple(given["drop"])})


def changed(settings: Settings) -> dict[str, object]:
    """Return settings of heads that a row's name tells, where they are not the baseline's."""
    usual = Settings()
    found: dict[str, object] = {"cells": "whole"} if settings.whole else {}
    for key in ("power", "layers", "rate", "pool_rate", "epochs"):
        if getattr(settings, key) != getattr(usual, key):
            found[key] = getattr(settings, key)
    if settings.batch != 128 * settings.captions:
        found["batch"] = settings.batch
    if any(settings.drop):
        found["drop"] = ",".join(map(str, settings.drop))
    return found


def _short(*values: float) -> list[float]:
    return [round(value, 1) for value in values]


if __name__ == "__main__":
    try:
        main()
    except Refused as refused:
        print(f"photos_experiment: {refused}", file=sys.stderr)
        sys.exit(2)
    except subprocess.CalledProcessError as failed:  # it has said why
        sys.exit(failed.returncode)
