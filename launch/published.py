"""The published VSE-infinity code and this project, side by side on the same region features.

python launch/published.py features PHOTOS OUT      write features in the published layout
python launch/published.py compare CHECKOUT DATA    train both from the same weights

`features` takes what `make photos` laid out, such as data/photos. CHECKOUT is the branch `bigru` of
https://github.com/woodfrog/vse_infty. DATA holds precomp/ with {train,test}_caps.txt and
{train,test}_ims.npy, five captions an image. Each code has a process and a thread of its own,
float32, and takes turns; rates are pairs per second of processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from vse_scale.bench.comparison import Implementation, take_turns
from vse_scale.bench.published import CAPTIONS, PublishedCode, Setting
from vse_scale.bench.published_turns import PHASES, evaluated, ours, theirs
from vse_scale.data.mixing import caption_texts
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.interchange.published import import_published

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
FIVE = "vse_scale, five captions an image"


def write_features(photos: Path, out: Path, images: int) -> None:
    """Write features that training stored, and the captions, in the published layout."""
    (stored,) = (path for path in (photos / "features").iterdir() if path.is_dir())
    folder = out / "precomp"
    folder.mkdir(parents=True)
    for split, name, most in (("train", "train", images), ("val", "test", images // 4)):
        dataset = ShardDataset(photos / "shards", split)
        files = [np.load(stored / f"{digest}.npy") for digest in dataset.shard_digests]
        features = np.concatenate(files)[:most]
        texts = [
            " ".join(caption.text.split())
            for image in range(len(features))
            for caption in dataset.record(image).captions[:CAPTIONS]
        ]
        np.save(folder / f"{name}_ims.npy", features)
        (folder / f"{name}_caps.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")


def prepare(setting: Setting) -> None:
    """Make the shards, the vocabulary, and the first weights, which the published code draws."""
    command = [Path(sys.executable).with_name("vse-shards"), "build", "--source", "precomp"]
    command += ["--input", Path(setting.data), "--out", setting.shards, "--no-images"]
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    texts = caption_texts(ShardDataset(setting.shards, "train"))
    tokenizer = CaptionTokenizer.train_words(texts, 4)
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
    take_turns([Implementation("both", evaluated, {"setting": setting})], repeats=1, small=True)
    print_evaluation(json.loads((setting.folder / "evaluation.json").read_text()))


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


def main(arguments: list[str]) -> int:
    """Run a command; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    features = commands.add_parser("features")
    features.add_argument("photos", type=Path)
    features.add_argument("out", type=Path)
    features.add_argument("--images", type=int, default=1200, help="to train on; a quarter to test")
    comparing = commands.add_parser("compare")
    comparing.add_argument("checkout", type=Path)
    comparing.add_argument("data", type=Path)
    comparing.add_argument("--batch", type=int, default=128, help="pairs of a step")
    comparing.add_argument("--steps", type=int, default=2, help="of a turn")
    comparing.add_argument("--repeats", type=int, default=5, help="turns, after one to warm up")
    comparing.add_argument("overrides", nargs="*", help="section.key=value of our recipe")
    given = parser.parse_args(arguments)
    if given.command == "features":
        write_features(given.photos, given.out, given.images)
        return 0
    if not (given.checkout / "lib" / "vocab.py").is_file():
        print(
            f"published: {given.checkout} is no checkout of the branch bigru; run: git clone "
            "--branch bigru https://github.com/woodfrog/vse_infty",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as work:
        checkout, data = (str(path.resolve()) for path in (given.checkout, given.data))
        setting = Setting(
            checkout, data, work, given.batch, steps=given.steps, overrides=tuple(given.overrides)
        )
        prepare(setting)
        compare(setting, given.repeats)
    return 0


if __name__ == "__main__":
    os.environ.update(dict.fromkeys(THREADS, "1"))  # of each process that is started
    sys.exit(main(sys.argv[1:]))
