"""The published VSE-infinity code and this project, side by side on the same region features.

python launch/published.py features PHOTOS OUT          write features in the published layout
python launch/published.py compare CHECKOUT DATA        train both from the same weights, in turns
python launch/published.py epochs CHECKOUT DATA ROWS    train both for whole epochs, by seed

`features` takes what `make photos` laid out, such as data/photos. CHECKOUT is the branch `bigru` of
https://github.com/woodfrog/vse_infty, or `master` where --encoder names a BERT's folder. DATA holds
precomp/ with {train,test}_caps.txt and {train,test}_ims.npy, five captions an image. Each code has
a process of its own, float32, and takes turns; rates are pairs per second of processor time, or of
the clock, which wants a machine without other work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from vse_scale.bench.comparison import Implementation, take_turns
from vse_scale.bench.published import CAPTIONS, PublishedCode, Setting
from vse_scale.bench.published_cores import PROCESSOR, ours_on_cores, theirs_on_cores
from vse_scale.bench.published_epochs import our_epochs, table, their_epochs
from vse_scale.bench.published_turns import PHASES, evaluated, ours, theirs
from vse_scale.data.mixing import caption_texts
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.interchange.published import import_published

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
FIVE = "vse_scale, five captions an image"


def write_features(photos: Path, out: Path, images: int, side: int) -> None:
    """Write features that training stored, and the captions, in the published layout.

    Args:
        photos: what `make photos` laid out.
        out: folder to make.
        images: most to train on; a quarter of them, to test.
        side: of the square grid of means that the stored cells become.
    """
    (stored,) = (path for path in (photos / "features").iterdir() if path.is_dir())
    folder = out / "precomp"
    folder.mkdir(parents=True)
    for split, name, most in (("train", "train", images), ("val", "test", images // 4)):
        dataset = ShardDataset(photos / "shards", split)
        files = [np.load(stored / f"{digest}.npy") for digest in dataset.shard_digests]
        features = coarser(np.concatenate(files)[:most], side)
        texts = [
            " ".join(caption.text.split())
            for image in range(len(features))
            for caption in dataset.record(image).captions[:CAPTIONS]
        ]
        np.save(folder / f"{name}_ims.npy", features)
        (folder / f"{name}_caps.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")


def coarser(features: Any, side: int) -> Any:
    """Return means of the cells of square grids (N, K, C): (N, side^2, C) of the same dtype."""
    count, cells, channels = features.shape
    if cells == side * side:
        return features
    square = math.isqrt(cells)
    grids = torch.from_numpy(features).transpose(1, 2).reshape(count, channels, square, square)
    means = torch.cat([adaptive_avg_pool2d(some.float(), side) for some in grids.split(100)])
    return means.flatten(2).transpose(1, 2).to(grids.dtype).contiguous().numpy()


def prepare(setting: Setting) -> None:
    """Make the shards, the vocabulary, and the first weights, which the published code draws."""
    build_shards(setting)
    draw_weights(setting)


def build_shards(setting: Setting) -> None:
    """Make the dataset that both train on."""
    command = [Path(sys.executable).with_name("vse-shards"), "build", "--source", "precomp"]
    command += ["--input", Path(setting.data), "--out", setting.shards, "--no-images"]
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)


def draw_weights(setting: Setting) -> None:
    """Write the first weights for both, and the vocabulary or the encoder's own tokenizer."""
    texts = caption_texts(ShardDataset(setting.shards, "train"))
    if setting.encoder is None:
        tokenizer = CaptionTokenizer.train_words(texts, 4)
    else:
        tokenizer = CaptionTokenizer.load(setting.encoder)
    PublishedCode(setting, tokenizer.vocab_size).save(setting.folder / "first.pth")
    first = import_published(setting.folder / "first.pth").model
    first.save_pretrained(setting.folder / "start", tokenizer=tokenizer)


def compare(setting: Setting, repeats: int) -> None:
    """Train and evaluate by both, and print what they found and took."""
    five = replace(setting, batch=setting.batch // CAPTIONS * CAPTIONS, captions=CAPTIONS)
    most = setting.steps * (repeats + 1)
    implementations = [
        Implementation(
            "published", theirs, {"setting": setting, "name": "published", "most": most}
        ),
        Implementation("vse_scale", ours, {"setting": setting, "name": "vse_scale"}),
        Implementation(FIVE, ours, {"setting": five, "name": "five"}),
    ]
    results = take_turns(implementations, repeats, small=False)
    peer = results["published"].values
    for name, result in results.items():
        ratios = [value / other for value, other in zip(result.values, peer, strict=True)]
        rate = median(result.values)
        shares = ", ".join(f"{phase} {100 * result.shares[phase]:.0f}%" for phase in PHASES)
        print(
            f"{name}: {rate:.1f} pairs/s ({min(result.values):.1f} to {max(result.values):.1f}), "
            f"{median(ratios):.2f} times the published code; {shares}"
        )
    print_losses("as published", setting.folder)
    alike = replace(setting, alike=True, steps=6)
    take_turns(
        [
            Implementation(
                "published", theirs, {"setting": alike, "name": "published", "most": alike.steps}
            ),
            Implementation("vse_scale", ours, {"setting": alike, "name": "vse_scale"}),
        ],
        repeats=1,
        small=True,
    )
    print_losses("no padding in BatchNorm, no negatives of one image", setting.folder)
    if setting.encoder is not None:
        return  # a checkpoint does not tell the heads of its BERT's attention
    take_turns([Implementation("both", evaluated, {"setting": setting})], repeats=1, small=True)
    print_evaluation(json.loads((setting.folder / "evaluation.json").read_text()))


def compare_on_cores(setting: Setting, repeats: int, cores: int) -> None:
    """Train by both on several cores, by the clock, and print their rates."""
    ranks = CAPTIONS * cores  # an image stays whole on its rank
    even = replace(setting, batch=setting.batch // ranks * ranks)
    five = replace(even, captions=CAPTIONS)
    most = setting.steps * (repeats + 1)
    implementations = [
        Implementation(
            f"published, {cores} threads",
            theirs_on_cores,
            {"setting": even, "most": most, "threads": cores},
        )
    ]
    for one, kind in ((even, "vse_scale"), (five, FIVE)):
        for processes, threads in ((1, cores), (cores, 1)):
            name = f"{kind}, {processes} x {threads} threads"
            given = {"setting": one, "name": name, "ranks": processes, "threads": threads}
            implementations.append(Implementation(name, ours_on_cores, given))
    results = take_turns(implementations, repeats, small=False)
    peer = next(iter(results.values())).values
    for name, result in results.items():
        ratios = [value / other for value, other in zip(result.values, peer, strict=True)]
        rate = median(result.values)
        print(
            f"{name}: {rate:.1f} pairs/s ({min(result.values):.1f} to {max(result.values):.1f}) by "
            f"the clock, {median(ratios):.2f} times the published code; "
            f"{rate / result.shares[PROCESSOR]:.1f} pairs a processor second"
        )


def train_epochs(setting: Setting, seeds: list[int], epochs: int, rows: Path) -> None:
    """Train both for whole epochs, seed by seed, and append a row to ``rows`` after each."""
    build_shards(setting)
    for seed in seeds:
        seeded = replace(setting, seed=seed)
        draw_weights(seeded)
        arguments = {"setting": seeded, "epochs": epochs, "file": str(rows)}
        for name, trained in (("published", their_epochs), ("vse_scale", our_epochs)):
            take_turns([Implementation(name, trained, arguments)], repeats=1, small=True)
    print("\n".join(table(rows)))


def print_losses(case: str, folder: Path) -> None:
    """Print both losses of each step, and their relative difference."""
    columns = [
        [float(line) for line in (folder / f"{name}.loss").read_text().split()]
        for name in ("published", "vse_scale")
    ]
    print(f"losses, {case}: step, published, vse_scale, relative difference")
    for step, (other, own) in enumerate(zip(*columns, strict=False)):
        print(f"  {step:3} {other:14.6f} {own:14.6f} {abs(own - other) / abs(other):9.1e}")


def print_evaluation(found: dict[str, Any]) -> None:
    """Print the figures of each code's embeddings by each code's evaluation."""
    print(f"embeddings of the same weights differ by at most {found['difference']:.1e}")
    for name in ("theirs", "ours"):
        figures = found[name]
        equal = "equal" if figures["by theirs"] == figures["by ours"] else "NOT EQUAL"
        print(f"evaluation of {name}, R@1 5 10, median and mean rank both ways: {equal}")
        for by in ("by theirs", "by ours"):
            print(f"  {by}: {' '.join(map(repr, figures[by]))}")


def wrong_checkout(checkout: Path, branch: str) -> str | None:
    """Return what to do where ``checkout`` is not of that branch."""
    words, code = (checkout / "lib" / name for name in ("vocab.py", "vse.py"))
    if code.is_file() and words.is_file() == (branch == "bigru"):
        return None
    return (
        f"{checkout} is no checkout of the branch {branch}; run: git clone --branch {branch} "
        "https://github.com/woodfrog/vse_infty"
    )


def main(arguments: list[str]) -> int:
    """Run a command; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    features = commands.add_parser("features")
    features.add_argument("photos", type=Path)
    features.add_argument("out", type=Path)
    features.add_argument("--images", type=int, default=1200, help="to train on; a quarter to test")
    features.add_argument("--side", type=int, default=7, help="of the square grid of cells")
    comparing = commands.add_parser("compare")
    epochs = commands.add_parser("epochs")
    for command in (comparing, epochs):
        command.add_argument("checkout", type=Path)
        command.add_argument("data", type=Path)
        command.add_argument("--batch", type=int, default=128, help="pairs of a step")
    comparing.add_argument("--steps", type=int, default=2, help="of a turn")
    comparing.add_argument("--repeats", type=int, default=5, help="turns, after one to warm up")
    comparing.add_argument(
        "--cores", type=int, default=1, help="above 1: threads, or ranks of ours, by the clock"
    )
    comparing.add_argument("--encoder", type=Path, help="folder of a BERT, in place of a BiGRU")
    epochs.add_argument("rows", type=Path, help="CSV file, to which a row is added each epoch")
    epochs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    epochs.add_argument("--epochs", type=int, default=6)
    for command in (comparing, epochs):
        command.add_argument("overrides", nargs="*", help="section.key=value of our recipe")
    given = parser.parse_args(arguments)
    if given.command == "features":
        write_features(given.photos, given.out, given.images, given.side)
        return 0
    bert = given.command == "compare" and given.encoder is not None
    if refused := wrong_checkout(given.checkout, "master" if bert else "bigru"):
        print(f"published: {refused}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as work:
        checkout, data = (str(path.resolve()) for path in (given.checkout, given.data))
        setting = Setting(checkout, data, work, given.batch, overrides=tuple(given.overrides))
        if given.command == "epochs":
            train_epochs(setting, given.seeds, given.epochs, given.rows.resolve())
        else:
            encoder = None if given.encoder is None else str(given.encoder.resolve())
            setting = replace(setting, steps=given.steps, encoder=encoder)
            prepare(setting)
            if given.cores > 1:
                compare_on_cores(setting, given.repeats, given.cores)
            else:
                compare(setting, given.repeats)
    return 0


if __name__ == "__main__":
    os.environ.update(dict.fromkeys(THREADS, "1"))  # of each process that is started
    sys.stdout.reconfigure(line_buffering=True)  # so that a log tells how far a long run is
    sys.exit(main(sys.argv[1:]))
