"""The turns of the published code and of this project's `Trainer`, and what both find."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vse_scale.bench.comparison import Sample
from vse_scale.bench.published import (
    CAPTIONS,
    PublishedCode,
    Setting,
    our_figures,
    their_figures,
)
from vse_scale.data.loader import Loader
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.spec import InputSpec
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.interchange.published import import_published
from vse_scale.training.setup import make_plan
from vse_scale.training.timing import PhaseTimer
from vse_scale.training.trainer import Trainer
from vse_scale.world.join import join_world
from vse_shards.npy import open_npy

PHASES = ("data", "forward", "objective", "backward", "optimizer")


@dataclass(frozen=True)
class Recorded:
    """A step of this project's plan: rows of the captions, their ids, and the regions kept."""

    rows: list[int]
    ids: list[list[int]]
    draws: Any


def recorded(setting: Setting, count: int) -> list[Recorded]:
    """Return the first ``count`` steps of the plan, pair by pair."""
    config = setting.config("plan")
    dataset = ShardDataset(setting.shards, "train")
    tokenizer = CaptionTokenizer.load(setting.folder / "start")
    plan = make_plan(config, dataset)
    # Images are called train/0, train/1 and so on, by their rows in the published files.
    numbers = [
        int(str(dataset.record(image).image_id).partition("/")[2]) for image in range(len(dataset))
    ]
    spec = InputSpec(None, config.model.image.region_spec(), config.data.max_caption_tokens)
    cells = dataset.regions(0).shape[0]
    found = []
    with Loader(
        dataset, plan, tokenizer, spec, config.data, seed=config.run.seed, rank=0, ranks=1,
        device=torch.device("cpu"), grid_cells=cells,
    ) as batches:  # fmt: skip
        for step in range(count):
            batch = next(batches)
            pairs = plan.part(*divmod(step, plan.steps_per_epoch), 0, 1).pairs.tolist()
            found.append(
                Recorded(
                    [numbers[image] * CAPTIONS + caption for image, caption in pairs],
                    [
                        ids[:length].tolist()
                        for ids, length in zip(batch.token_ids, batch.token_lengths, strict=True)
                    ],
                    batch.cell_draws[:, 1:].numpy(),
                )
            )
    return found


class ProcessorTimer(PhaseTimer):
    """Times phases in processor seconds of the thread."""

    def _now(self) -> float:
        return time.thread_time()


def ours(setting: Setting, name: str) -> Iterator[Sample]:
    """Train this project's model by its `Trainer`, its loader included."""
    torch.set_num_threads(1)
    config = setting.config(name)
    trainer = Trainer(config, join_world(config.engine.timeout_seconds))
    torch.set_num_threads(1)
    timer, step = ProcessorTimer(torch.device("cpu")), 0
    with trainer._loader(0) as batches, (setting.folder / f"{name}.loss").open("w") as losses:
        while True:
            phases = dict.fromkeys(PHASES, 0.0)
            began, thread = time.process_time(), time.thread_time()
            for _ in range(setting.steps):
                batch = next(batches)
                record = trainer.train_step(batch, step, trainer.schedule.at(step), timer)
                step += 1
                losses.write(f"{record.loss!r}\n")
                for phase in phases.keys() & record.seconds.keys() - {"data"}:
                    phases[phase] += record.seconds[phase]
            seconds = time.process_time() - began
            phases["data"] = seconds - (time.thread_time() - thread)
            losses.flush()
            yield Sample(setting.steps * setting.batch, seconds, phases)


def theirs(setting: Setting, name: str, most: int) -> Iterator[Sample]:
    """Train by the published code: its dataset, collation, model, loss and optimizer."""
    torch.set_num_threads(1)
    tokenizer = CaptionTokenizer.load(setting.folder / "start")
    steps = recorded(setting, most)
    code = PublishedCode(setting, tokenizer.vocab_size)
    code.load(setting.folder / "first.pth")
    draws = (row for step in steps for row in step.draws)
    np.random.rand = lambda count: np.ones(count) if setting.alike else next(draws)  # type: ignore[assignment]
    dataset = code.dataset(setting.data, "train", (ids for step in steps for ids in step.ids))
    batches = iter(
        torch.utils.data.DataLoader(
            dataset, batch_sampler=[step.rows for step in steps], collate_fn=code.data.collate_fn
        )
    )
    model = code.model
    phases: dict[str, float] = {}
    per_epoch = len(dataset) // setting.batch

    def timed(owner: Any, method: str, phase: str) -> None:
        inner = getattr(owner, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            result = inner(*args, **kwargs)
            phases[phase] = phases.get(phase, 0.0) + time.thread_time() - began
            return result

        setattr(owner, method, call)

    timed(model, "forward_emb", "forward")
    timed(model, "forward_loss", "objective")
    timed(model.optimizer, "step", "optimizer")
    number = 0
    with (setting.folder / f"{name}.loss").open("w") as losses:
        while True:
            phases.clear()
            began, waited = time.process_time(), 0.0
            for _ in range(setting.steps):
                before = time.thread_time()
                images, lengths, captions, sizes, rows = next(batches)
                waited += time.thread_time() - before
                if setting.alike:
                    code.pass_over_own_captions(rows)
                if number == per_epoch:  # its --vse_mean_warmup_epochs 1
                    model.set_max_violation(True)
                model.train_start()
                model.train_emb(images, captions, sizes, image_lengths=lengths)
                number += 1
                losses.write(f"{model.logger.meters['Le'].val!r}\n")
            seconds = time.process_time() - began
            phases["data"] = waited
            phases["backward"] = seconds - sum(phases.values())
            losses.flush()
            code.save(setting.folder / "trained.pth")
            yield Sample(setting.steps * setting.batch, seconds, dict(phases))


def evaluated(setting: Setting) -> Iterator[Sample]:
    """Embed the test split by both codes from the same weights, and rank either's by both.

    What is found goes to ``evaluation.json``: of each code's embeddings the ten figures by both,
    and the largest difference of the embeddings.
    """
    torch.set_num_threads(1)
    tokenizer = CaptionTokenizer.load(setting.folder / "start")
    code = PublishedCode(setting, tokenizer.vocab_size)
    code.load(setting.folder / "trained.pth")
    data = Path(setting.data) / "precomp"
    texts = (data / "test_caps.txt").read_text(encoding="utf-8").splitlines()
    ids, lengths = map(torch.from_numpy, tokenizer.encode(texts))
    targets = (row[:length].tolist() for row, length in zip(ids, lengths, strict=True))
    loader = torch.utils.data.DataLoader(
        code.dataset(setting.data, "test", targets), setting.batch, collate_fn=code.data.collate_fn
    )
    model = import_published(setting.folder / "trained.pth").model
    regions = torch.from_numpy(open_npy(data / "test_ims.npy").astype(np.float32))
    with torch.inference_mode():
        images, captions = code.evaluation.encode_data(code.model, loader, logging=lambda *_: None)
        embedded = {
            "theirs": (images[::CAPTIONS], captions),
            "ours": (
                _in_parts(model.encode_images, regions),
                _in_parts(model.encode_captions, ids, lengths),
            ),
        }
    found: dict[str, Any] = {
        name: {
            "by theirs": their_figures(code.evaluation, *rows),
            "by ours": our_figures(*rows),
        }
        for name, rows in embedded.items()
    }
    found["difference"] = max(
        float(np.abs(mine - other).max()) for mine, other in zip(*embedded.values(), strict=True)
    )
    (setting.folder / "evaluation.json").write_text(json.dumps(found))
    while True:
        yield Sample(1, 1)


def _in_parts(encode: Callable[..., Tensor], *inputs: Tensor) -> Any:
    parts = zip(*(torch.split(tensor, 100) for tensor in inputs), strict=True)
    return torch.cat([encode(*part) for part in parts]).double().numpy()
