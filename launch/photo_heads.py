"""A Linear and a pooling for each side over the frozen states of two towers, in plain torch.

The obvious baseline of what `make photos` trains: no augmentation of captions, no engine, the best
epoch by validation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vse_scale.data.shards import ShardDataset
from vse_scale.model.pooling import make_pool
from vse_scale.model.pooling.gpo import GPO
from vse_scale.model.towers.base import ChannelDropout
from vse_scale.model.towers.grid import compact, kept_cells, signed_power

TOKENS = 32  # of a caption
WARMUP = 10  # steps
CAPTIONS = 5  # an image
MARGIN = 0.2
SIGMOID = 10.0  # scale of scores and negative bias, at first
OBJECTIVES = ("infonce", "sigmoid", "hinge+infonce", "all", "hardest")
LAYERS = 3  # of the text encoder, the last ones, whose means are kept


@dataclass(frozen=True)
class Settings:
    """Settings of a training of heads.

    Attributes:
        image, text: names of the poolings.
        objective: one of `OBJECTIVES`.
        whole: no cell of an image is left out, as size augmentation does.
        power: of the cells, with ``whole`` and means alone.
        layers: the last ones of the text encoder, side by side, with ``whole`` and means alone.
        drop: share of the channels that training leaves out, of images and of captions.
        batch: captions a step.
        captions: of an image in a step.
        size: D of the embedding.
        rate: of AdamW.
        pool_rate: the poolings' rate, as a factor of ``rate``.
        temperature: learned from there.
    """

    image: str = "mean"
    text: str = "mean"
    objective: str = "infonce"
    whole: bool = False
    power: float = 1.0
    layers: int = 1
    drop: tuple[float, float] = (0.0, 0.0)
    batch: int = 640
    captions: int = 5
    epochs: int = 6
    size: int = 512
    rate: float = 3e-3
    pool_rate: float = 1.0
    temperature: float = 0.05

    @property
    def means(self) -> bool:
        """Whether both sides take the mean."""
        return self.image == self.text == "mean"


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
    cells = [signed_power(some.float(), power).mean(1) for some in torch.split(states.cells, 100)]
    means = states.means[:, -layers * width :]
    ones = torch.ones_like(states.lengths)
    return States(torch.cat(cells)[:, None], means[:, None], ones, states.image_of, means)


def states_of(data: Path, split: str) -> States:
    """Return a split's states of ``data``, which `make photos` laid out.

    They are computed at the first call, and kept in a folder in it.
    """
    kept = data / "states" / f"{split}-{LAYERS}.pt"
    if not kept.is_file():
        dataset = ShardDataset(data / "shards", split)
        captions = [dataset.record(image).captions for image in range(len(dataset))]
        (features,) = filter(Path.is_dir, (data / "features").iterdir())
        cells = [np.load(features / f"{digest}.npy") for digest in dataset.shard_digests]
        encoder = data / "weights" / "all-MiniLM-L6-v2"
        texts = [caption.text for own in captions for caption in own]
        tokens, lengths, means = encode(encoder, texts)
        image_of = [image for image, own in enumerate(captions) for _ in own]
        found = (
            torch.from_numpy(np.concatenate(cells)), tokens, lengths, torch.tensor(image_of), means
        )  # fmt: skip
        kept.parent.mkdir(exist_ok=True)
        torch.save(found, kept)
    return States(*torch.load(kept))


@torch.inference_mode()
def encode(folder: Path, texts: list[str], batch: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Return captions' states (P, TOKENS, H) float16, their lengths, and means of more layers.

    Args:
        folder: of a BERT, in the layout of Hugging Face.
        texts: the captions.
        batch: captions encoded at once.
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    ids = tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"]
    lengths = torch.tensor([len(one) for one in ids])
    states = torch.zeros(len(texts), TOKENS, model.config.hidden_size, dtype=torch.float16)
    means = torch.zeros(len(texts), LAYERS * model.config.hidden_size)
    for rows in torch.split(lengths.argsort(), batch):
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
        linears = [nn.Linear(width, size) for width in inputs]
        for linear in linears:
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.linears = nn.ModuleList(linears)
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
        logits = scores * scale.exp() + (0.0 if bias is None else bias)
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
        [heads.images(states, r) for r in torch.split(torch.arange(len(states.cells)), 100)]
    )
    rows = torch.split(torch.arange(len(states.lengths)), 100)
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


def train_heads(data: Path, settings: Settings, seed: int) -> tuple[float, float, float]:
    """Train heads over frozen states; return the best epoch's recalls on the validation split.

    Args:
        data: what `make photos` laid out.
        settings: of the heads and of their training.
        seed: of the first weights and of the order.
    """
    train, val = states_of(data, "train"), states_of(data, "val")
    if settings.whole and settings.means:
        train, val = (pooled(one, settings.power, settings.layers) for one in (train, val))
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    widths = (train.cells.shape[2], train.tokens.shape[2])
    heads = Heads(settings.image, settings.text, widths, settings.size, settings.drop)
    first = (
        math.log(SIGMOID) if settings.objective == "sigmoid" else -math.log(settings.temperature)
    )
    scale, bias = nn.Parameter(torch.tensor(first)), nn.Parameter(torch.tensor(-SIGMOID))
    optimizer = optimizer_of(heads, [scale, bias], settings)
    for line in spread(heads, val):
        print(line, flush=True)
    images, best = settings.batch // settings.captions, (0.0, 0.0, 0.0)
    steps, step = settings.epochs * (len(train.cells) // images), 0
    for epoch in range(1, settings.epochs + 1):
        for rows in torch.split(torch.randperm(len(train.cells), generator=draws), images):
            if len(rows) < images:
                continue
            chosen = torch.stack(
                [torch.randperm(CAPTIONS, generator=draws)[: settings.captions] for _ in rows]
            )
            cut = torch.rand(len(rows), 1 + train.cells.shape[1], generator=draws)
            own = torch.arange(len(rows)).repeat_interleave(settings.captions)
            embedded = heads.images(train, rows, None if settings.whole else cut)[own]
            texts = heads.captions(train, (rows[:, None] * CAPTIONS + chosen).flatten())
            rise, fall = min(1.0, (step + 1) / WARMUP), max(0, step - WARMUP) / (steps - WARMUP)
            for group in optimizer.param_groups:
                group["lr"] = group["most"] * rise * (1 + math.cos(math.pi * fall)) / 2
            optimizer.zero_grad()
            loss = loss_of(settings.objective, embedded @ texts.T, own, scale, bias)
            loss.backward()
            nn.utils.clip_grad_norm_([*heads.parameters(), scale, bias], 2.0)
            optimizer.step()
            step += 1
        if epoch % 2 == 0 or epoch == settings.epochs:
            best = max(best, recalls(heads, val), key=lambda found: found[2])
    for line in spread(heads, val):
        print(line, flush=True)
    return best


def optimizer_of(heads: Heads, others: list[nn.Parameter], settings: Settings) -> torch.optim.AdamW:
    """Return AdamW over heads and ``others``; each group's "most" is its highest rate."""
    pools = list(heads.pools.parameters())
    linears = [*heads.linears.parameters(), *others]
    groups = [{"params": linears, "most": settings.rate}]
    if pools:
        groups.append({"params": pools, "most": settings.rate * settings.pool_rate})
    return torch.optim.AdamW(groups, lr=settings.rate, weight_decay=1e-4)


@torch.inference_mode()
def spread(heads: Heads, states: States) -> list[str]:
    """Return a line for each GPO: over how many of its states it spreads its weights.

    That number is exp of the weights' entropy: all of them for a mean, 1 for a maximum.
    """
    lines = []
    counts = (torch.tensor([states.cells.shape[1]]), torch.unique(states.lengths))
    for side, pool, lengths in zip(("image", "text"), heads.pools, counts, strict=True):
        if isinstance(pool, GPO):
            length = int(lengths.median())
            weights = pool.weight_table(torch.tensor([length]), length)[0].double()
            even = float(torch.special.entr(weights).sum().exp())
            largest = f"the largest weight is {weights.max():.3f}, of place {weights.argmax() + 1}"
            lines.append(f"{side} GPO: {even:.1f} of {length} states; {largest}")
    return lines
