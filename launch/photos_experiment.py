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
from vse_scale.model.towers.grid import compact, kept_cells

DATA = Path("data/photos")
RECIPE = Path("launch/recipes/photos.yaml")
ROWS = Path("docs/photos/rows.csv")
PLOT = Path("docs/photos/rows.svg")
TOKENS = 32  # of a caption
WARMUP = 10  # steps
CAPTIONS = 5  # an image


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
    """

    cells: Tensor
    tokens: Tensor
    lengths: Tensor
    image_of: Tensor


def states_of(split: str) -> States:
    """Return a split's states, computed at the first call and kept below `DATA`."""
    kept = DATA / "states" / f"{split}.pt"
    if not kept.is_file():
        dataset = ShardDataset(DATA / "shards", split)
        captions = [dataset.record(image).captions for image in range(len(dataset))]
        (features,) = filter(Path.is_dir, (DATA / "features").iterdir())
        cells = [np.load(features / f"{digest}.npy") for digest in dataset.shard_digests]
        tokens, lengths = encode([caption.text for own in captions for caption in own])
        image_of = [image for image, own in enumerate(captions) for _ in own]
        found = (torch.from_numpy(np.concatenate(cells)), tokens, lengths, torch.tensor(image_of))
        kept.parent.mkdir(exist_ok=True)
        torch.save(found, kept)
    return States(*torch.load(kept))


@torch.inference_mode()
def encode(texts: list[str], batch: int = 64) -> tuple[Tensor, Tensor]:
    """Return the text encoder's states (P, TOKENS, H) float16 of captions, and their lengths."""
    from transformers import AutoModel, AutoTokenizer

    folder = DATA / "weights" / "all-MiniLM-L6-v2"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    ids = tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"]
    lengths = torch.tensor([len(one) for one in ids])
    states = torch.zeros(len(texts), TOKENS, model.config.hidden_size, dtype=torch.float16)
    for rows in lengths.argsort().split(batch):
        longest = int(lengths[rows].max())
        padded = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, row in enumerate(rows.tolist()):
            padded[place, : len(ids[row])] = torch.tensor(ids[row])
        mask = torch.arange(longest) < lengths[rows, None]
        found = model.eval()(input_ids=padded, attention_mask=mask.long()).last_hidden_state
        states[rows, :longest] = (found * mask[..., None]).half()
    return states, lengths


class Heads(nn.Module):
    """A Linear and a pooling for each side; the mean is taken first, which is the same."""

    def __init__(self, image: str, text: str, inputs: tuple[int, int], size: int) -> None:
        super().__init__()
        self.kinds = (image, text)
        self.linears = nn.ModuleList(nn.Linear(width, size) for width in inputs)
        for linear in self.linears:
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.pools = nn.ModuleList(map(make_pool, self.kinds))

    def side(self, which: int, states: Tensor, lengths: Tensor) -> Tensor:
        """Embed states (N, K, C) of lengths (N,), zero behind them, as (N, D)."""
        if self.kinds[which] == "mean":
            vectors = self.linears[which](states.sum(1) / lengths[:, None])
        else:
            vectors = self.pools[which](self.linears[which](states), lengths)
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


def loss_of(kind: str, scores: Tensor, own: Tensor, scale: Tensor, margin: float = 0.2) -> Tensor:
    """Return the loss of scores (B, B); pairs of one image, by ``own`` (B,), are no negatives."""
    pair = torch.eye(len(own), dtype=torch.bool)
    same = own[:, None] == own
    if kind == "infonce":
        logits = (scores * scale.exp()).masked_fill(same & ~pair, -torch.inf)
        target = torch.arange(len(own))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    right = scores.diag()
    rows = (margin + scores - right[:, None]).clamp(min=0).masked_fill(same, 0.0)
    columns = (margin + scores - right).clamp(min=0).masked_fill(same, 0.0)
    if kind == "hardest":
        return rows.amax(1).sum() + columns.amax(0).sum()
    return (rows.sum() + columns.sum()) / len(own)


@torch.inference_mode()
def recalls(heads: Heads, states: States) -> tuple[float, float, float]:
    """Return R@1 of images and of captions, and RSUM, in percent; a tie counts against."""
    images = torch.cat(
        [heads.images(states, r) for r in torch.arange(len(states.cells)).split(100)]
    )
    rows = torch.arange(len(states.lengths)).split(100)
    scores = images @ torch.cat([heads.captions(states, row) for row in rows]).T
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
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    widths = (train.cells.shape[2], train.tokens.shape[2])
    heads = Heads(options.image, options.text, widths, options.size)
    scale = nn.Parameter(torch.tensor(-math.log(options.temperature)))
    learned = [*heads.parameters(), scale]
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
            own = torch.arange(len(rows)).repeat_interleave(options.captions)
            embedded = heads.images(train, rows, cut)[own]
            texts = heads.captions(train, (rows[:, None] * CAPTIONS + chosen).flatten())
            rise, fall = min(1.0, (step + 1) / WARMUP), max(0, step - WARMUP) / (steps - WARMUP)
            for group in optimizer.param_groups:
                group["lr"] = options.rate * rise * (1 + math.cos(math.pi * fall)) / 2
            optimizer.zero_grad()
            loss_of(options.objective, embedded @ texts.T, own, scale).backward()
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
            found.setdefault(row["row"], []).append(float(row["rsum"]))
    names = sorted(found, key=lambda name: np.mean(found[name]))
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.3 * len(names)), layout="constrained")
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
    heads.add_argument("--objective", choices=["infonce", "all", "hardest"], default="infonce")
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
        settings = {k: getattr(options, k) for k in ("batch", "captions", "epochs", "rate")}
        pools = f"image {options.image}, text {options.text}"
        name = f"heads: {pools}, {options.objective}, {options.captions} of the captions"
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


def _short(*values: float) -> list[float]:
    return [round(value, 1) for value in values]


if __name__ == "__main__":
    main()
