"""The experiment of docs/photos.md: each command appends a row a seed to a CSV file.

python launch/photos_experiment.py heads [--image POOL] [--text POOL] [--seeds N ...] ...
python launch/photos_experiment.py recipe NAME [section.key=value ...] [--seeds N ...]
python launch/photos_experiment.py plot

`heads` trains a Linear and a pooling for each side over the frozen states of both towers, in plain
torch, without augmentation of captions; `recipe` trains launch/recipes/photos.yaml with changes.
Both take what `make photos` left in data/photos, and rank its validation split.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vse_scale.data.shards import ShardDataset
from vse_scale.model.pooling import make_pool
from vse_scale.model.towers.base import ChannelDropout
from vse_scale.model.towers.grid import compact, kept_cells, signed_power

DATA = Path("data/photos")
RECIPE = Path("launch/recipes/photos.yaml")
ROWS = Path("docs/photos/rows.csv")
PLOT = Path("docs/photos/rows.svg")
TOKENS = 32  # of a caption
WARMUP = 10  # steps
CAPTIONS = 5  # an image
MARGIN = 0.2
SIGMOID = 10.0  # scale of scores and negative bias, at first
OBJECTIVES = ("infonce", "sigmoid", "hinge+infonce", "all", "hardest")
LAYERS = 3  # of the text encoder, the last ones, whose means are kept


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


@dataclass(frozen=True)
class States:
    """The frozen towers' states of a split.

    Attributes:
        cells: (I, K, C) float16.
        tokens: (P, TOKENS, H) float16, zero behind a caption's end.
        lengths: (P,) int64, tokens of a caption.
        image_of: (P,) int64, the image of a caption.
        means: (P, LAYERS H) float32, mean over a caption's tokens of the last layers' states.
    """

    cells: Tensor
    tokens: Tensor
    lengths: Tensor
    image_of: Tensor
    means: Tensor


def pooled(states: States, power: float, layers: int) -> States:
    """Return the mean of all cells, to a power, and of all tokens, by the last layers.

    A mean commutes with a Linear, so that this is done once.
    """
    width = states.tokens.shape[2]
    cells = [signed_power(some.float(), power).mean(1) for some in states.cells.split(100)]
    means = states.means[:, -layers * width :]
    ones = torch.ones_like(states.lengths)
    return States(torch.cat(cells)[:, None], means[:, None], ones, states.image_of, means)


def states_of(split: str) -> States:
    """Return a split's states, computed at the first call and kept below `DATA`."""
    kept = DATA / "states" / f"{split}-{LAYERS}.pt"
    if not kept.is_file():
        dataset = ShardDataset(DATA / "shards", split)
        captions = [dataset.record(image).captions for image in range(len(dataset))]
        (features,) = filter(Path.is_dir, (DATA / "features").iterdir())
        cells = [np.load(features / f"{digest}.npy") for digest in dataset.shard_digests]
        tokens, lengths, means = encode([caption.text for own in captions for caption in own])
        image_of = [image for image, own in enumerate(captions) for _ in own]
        found = (
            torch.from_numpy(np.concatenate(cells)), tokens, lengths, torch.tensor(image_of), means
        )  # fmt: skip
        kept.parent.mkdir(exist_ok=True)
        torch.save(found, kept)
    return States(*torch.load(kept))


@torch.inference_mode()
def encode(texts: list[str], batch: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Return captions' states (P, TOKENS, H) float16, their lengths, and means of more layers."""
    from transformers import AutoModel, AutoTokenizer

    folder = DATA / "weights" / "all-MiniLM-L6-v2"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    ids = tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"]
    lengths = torch.tensor([len(one) for one in ids])
    states = torch.zeros(len(texts), TOKENS, model.config.hidden_size, dtype=torch.float16)
    means = torch.zeros(len(texts), LAYERS * model.config.hidden_size)
    for rows in lengths.argsort().split(batch):
        longest = int(lengths[rows].max())
        padded = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, row in enumerate(rows.tolist()):
            padded[place, : len(ids[row])] = torch.tensor(ids[row])
        mask = torch.arange(longest) < lengths[rows, None]
        found = model.eval()(
            input_ids=padded, attention_mask=mask.long(), output_hidden_states=True
        ).hidden_states[-LAYERS:]
        states[rows, :longest] = (found[-1] * mask[..., None]).half()
        means[rows] = (torch.cat(found, 2) * mask[..., None]).sum(1) / lengths[rows, None]
    return states, lengths, means


class Heads(nn.Module):
    """A Linear and a pooling for each side; the mean is taken first, which is the same.

    In training a share of each side's channels is left out.
    """

    def __init__(
        self,
        image: str,
        text: str,
        inputs: tuple[int, int],
        size: int,
        dropped: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        self.drops = nn.ModuleList(map(ChannelDropout, dropped))
        self.kinds = (image, text)
        self.linears = nn.ModuleList(nn.Linear(width, size) for width in inputs)
        for linear in self.linears:
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.pools = nn.ModuleList(map(make_pool, self.kinds))

    def side(self, which: int, states: Tensor, lengths: Tensor) -> Tensor:
        """Embed states (N, K, C) of lengths (N,), zero behind them, as (N, D)."""
        linear, drop = self.linears[which], self.drops[which]
        if self.kinds[which] == "mean":
            vectors = linear(drop(states.sum(1) / lengths[:, None]))
        else:
            vectors = self.pools[which](linear(drop(states)), lengths)
        return F.normalize(vectors, dim=1)

    def images(self, states: States, rows: Tensor, draws: Tensor | None = None) -> Tensor:
        """Embed images; by ``draws`` (N, 1 + K) some of their cells are left out."""
        cells = states.cells[rows].float()
        lengths = torch.full((len(rows),), cells.shape[1])
        if draws is not None:
            cells, lengths = compact(cells, kept_cells(draws))
            cells = cells * (torch.arange(cells.shape[1]) < lengths[:, None])[..., None]
        return self.side(0, cells, lengths)

    def captions(self, states: States, rows: Tensor) -> Tensor:
        """Embed captions."""
        lengths = states.lengths[rows]
        return self.side(1, states.tokens[rows, : int(lengths.max())].float(), lengths)


def loss_of(
    kind: str, scores: Tensor, own: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return the loss of scores (B, B); pairs of one image, by ``own`` (B,), are no negatives.

    ``scale`` () is the logarithm of what scores are multiplied by, ``bias`` () is of the sigmoid.
    """
    pair = torch.eye(len(own), dtype=torch.bool)
    same = own[:, None] == own
    if kind == "hinge+infonce":
        hinge = loss_of("hardest", scores, own, scale) / len(own)
        return hinge + loss_of("infonce", scores, own, scale)
    if kind == "sigmoid":
        logits = scores * scale.exp() + bias
        others = F.logsigmoid(-logits).masked_fill(same, 0.0).sum()
        return -(F.logsigmoid(logits.diag()).sum() + others) / len(own)
    if kind == "infonce":
        logits = (scores * scale.exp()).masked_fill(same & ~pair, -torch.inf)
        target = torch.arange(len(own))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    right = scores.diag()
    rows = (MARGIN + scores - right[:, None]).clamp(min=0).masked_fill(same, 0.0)
    columns = (MARGIN + scores - right).clamp(min=0).masked_fill(same, 0.0)
    if kind == "hardest":
        return rows.amax(1).sum() + columns.amax(0).sum()
    return (rows.sum() + columns.sum()) / len(own)


@torch.inference_mode()
def recalls(heads: Heads, states: States) -> tuple[float, float, float]:
    """Return R@1 of images and of captions, and RSUM, in percent; a tie counts against."""
    heads.eval()
    images = torch.cat(
        [heads.images(states, r) for r in torch.arange(len(states.cells)).split(100)]
    )
    rows = torch.arange(len(states.lengths)).split(100)
    scores = images @ torch.cat([heads.captions(states, row) for row in rows]).T
    heads.train()
    right = torch.zeros_like(scores, dtype=torch.bool)
    right[states.image_of, torch.arange(len(states.image_of))] = True
    own = scores[states.image_of, torch.arange(len(states.image_of))]
    ranks_of_images = ((scores >= own) & ~right).sum(0)
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    ranks_of_captions = ((scores >= best) & ~right).sum(1)
    found = [
        (ranks < limit).double().mean().item() * 100
        for ranks in (ranks_of_captions, ranks_of_images)
        for limit in (1, 5, 10)
    ]
    return found[0], found[3], sum(found)


def train_heads(options: argparse.Namespace, seed: int) -> tuple[float, float, float]:
    """Train heads over frozen states; return the best epoch's recalls on the validation split."""
    train, val = states_of("train"), states_of("val")
    if options.whole:
        train, val = (pooled(one, options.power, options.layers) for one in (train, val))
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    widths = (train.cells.shape[2], train.tokens.shape[2])
    heads = Heads(options.image, options.text, widths, options.size, tuple(options.drop))
    sigmoid = options.objective == "sigmoid"
    first = math.log(SIGMOID) if sigmoid else -math.log(options.temperature)
    scale, bias = nn.Parameter(torch.tensor(first)), nn.Parameter(torch.tensor(-SIGMOID))
    learned = [*heads.parameters(), scale, bias]
    optimizer = torch.optim.AdamW(learned, lr=options.rate, weight_decay=1e-4)
    images, best = options.batch // options.captions, (0.0, 0.0, 0.0)
    steps, step = options.epochs * (len(train.cells) // images), 0
    for epoch in range(1, options.epochs + 1):
        for rows in torch.randperm(len(train.cells), generator=draws).split(images):
            if len(rows) < images:
                continue
            chosen = torch.stack(
                [torch.randperm(CAPTIONS, generator=draws)[: options.captions] for _ in rows]
            )
            cut = torch.rand(len(rows), 1 + train.cells.shape[1], generator=draws)
            cut = None if options.whole else cut
            own = torch.arange(len(rows)).repeat_interleave(options.captions)
            embedded = heads.images(train, rows, cut)[own]
            texts = heads.captions(train, (rows[:, None] * CAPTIONS + chosen).flatten())
            rise, fall = min(1.0, (step + 1) / WARMUP), max(0, step - WARMUP) / (steps - WARMUP)
            for group in optimizer.param_groups:
                group["lr"] = options.rate * rise * (1 + math.cos(math.pi * fall)) / 2
            optimizer.zero_grad()
            loss_of(options.objective, embedded @ texts.T, own, scale, bias).backward()
            nn.utils.clip_grad_norm_(learned, 2.0)
            optimizer.step()
            step += 1
        if epoch % 2 == 0 or epoch == options.epochs:
            best = max(best, recalls(heads, val), key=lambda found: found[2])
    return best


def train_recipe(options: argparse.Namespace, seed: int) -> tuple[float, float, float]:
    """Train the recipe with changes; return the best epoch's recalls on the validation split."""
    run = Path("runs/photos-rows") / f"{options.name}-{seed}"
    command = [sys.executable, "-m", "vse_scale.training", "--config", str(RECIPE)]
    changes = [f"run.dir={run}", f"run.seed={seed}", *options.changes]
    subprocess.run([*command, *changes], check=True)
    best = json.loads((run / "results.json").read_text())
    return best["i2t"]["r1"], best["t2i"]["r1"], best["rsum"]


def append(row: Row, path: Path) -> None:
    """Append a row to the CSV file, with the names of the columns if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(row)), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def plot(rows: Path, out: Path) -> None:
    """Draw every row's RSUM by name: a dot a seed, and a line at the mean."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    found: dict[str, list[float]] = {}
    with rows.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            # What most rows share is left out, so that the names leave room for the dots.
            name = row["row"].replace("image mean, text mean, ", "")
            name = name.replace(", 5 of the captions", "").replace("former recipe", "former")
            found.setdefault(name, []).append(float(row["rsum"]))
    names = sorted(found, key=lambda name: np.mean(found[name]))
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.3 * len(names)), layout="constrained")
    for place, name in enumerate(names):
        axes.plot(found[name], [place] * len(found[name]), "o", color="#2a6f97")
        axes.plot(np.mean(found[name]), place, "|", color="#2a6f97", markersize=16)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("RSUM, validation split")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    heads, recipe = commands.add_parser("heads"), commands.add_parser("recipe")
    commands.add_parser("plot")
    for name in ("image", "text"):
        heads.add_argument(f"--{name}", choices=["mean", "max", "gpo"], default="mean")
    heads.add_argument("--objective", choices=OBJECTIVES, default="infonce")
    heads.add_argument("--whole", action="store_true", help="no size augmentation; means alone")
    heads.add_argument("--power", type=float, default=1.0, help="of the cells, with --whole")
    heads.add_argument("--layers", type=int, choices=range(1, LAYERS + 1), default=1)
    heads.add_argument("--drop", type=float, nargs=2, default=[0.0, 0.0], help="of both sides")
    for name, value in (("batch", 640), ("captions", 5), ("epochs", 6), ("size", 512)):
        heads.add_argument(f"--{name}", type=int, default=value)
    for name, number in (("rate", 3e-3), ("temperature", 0.05)):
        heads.add_argument(f"--{name}", type=float, default=number)
    recipe.add_argument("name")
    recipe.add_argument("changes", nargs="*", metavar="section.key=value")
    for one in (heads, recipe):
        one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        one.add_argument("--rows", type=Path, default=ROWS)
    options = parser.parse_args()
    if options.command == "plot":
        plot(ROWS, PLOT)
        return
    if options.command == "heads":
        for split in ("train", "val"):
            states_of(split)
        inputs = options.power != 1 or options.layers != 1
        means = options.image == options.text == "mean"
        if (inputs and not options.whole) or (options.whole and not means):
            heads.error("--power and --layers need --whole, which needs mean pooling on both sides")
        settings = {k: getattr(options, k) for k in ("batch", "captions", "epochs", "rate")}
        settings |= changed(options)
        pools = f"image {options.image}, text {options.text}"
        name = f"heads: {pools}, {options.objective}, {options.captions} of the captions"
        name += "".join(f", {key} {value}" for key, value in changed(options).items())
        train = train_heads
    else:
        settings = dict(change.split("=", 1) for change in options.changes)
        name, train = options.name, train_recipe
    listed = " ".join(f"{key}={value}" for key, value in settings.items())
    for seed in options.seeds:
        began, before = time.monotonic(), sum(os.times()[:4])
        i2t, t2i, rsum = train(options, seed)
        cpu, clock = sum(os.times()[:4]) - before, time.monotonic() - began
        append(Row(name, seed, listed, *_short(i2t, t2i, rsum, cpu, clock)), options.rows)


def changed(options: argparse.Namespace) -> dict[str, object]:
    """Return settings of heads that a row's name tells, where they are not the baseline's."""
    found: dict[str, object] = {"cells": "whole"} if options.whole else {}
    for key, usual in (("power", 1.0), ("layers", 1), ("rate", 3e-3), ("epochs", 6)):
        if getattr(options, key) != usual:
            found[key] = getattr(options, key)
    if options.batch != 128 * options.captions:
        found["batch"] = options.batch
    if any(options.drop):
        found["drop"] = ",".join(map(str, options.drop))
    return found


def _short(*values: float) -> list[float]:
    return [round(value, 1) for value in values]


if __name__ == "__main__":
    main()
