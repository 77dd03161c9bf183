"""The turns of the published code and of this project's `Trainer`, and what both find."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vse_scale.bench.comparison import Sample
from vse_scale.bench.published import (
    PublishedCode,
    Setting,
    our_figures,
    test_captions,
    their_figures,
)
from vse_scale.bench.published_training import PublishedTraining
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.interchange.published import import_published
from vse_scale.training.timing import PhaseTimer
from vse_scale.training.trainer import Trainer
from vse_scale.world.join import join_world
from vse_shards.npy import open_npy

PHASES = ("data", "forward", "objective", "backward", "optimizer")


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
    """Train by the published code."""
    torch.set_num_threads(1)
    training = PublishedTraining(setting, most)
    model = training.code.model
    phases: dict[str, float] = {}

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
    with (setting.folder / f"{name}.loss").open("w") as losses:
        while True:
            phases.clear()
            began, training.waited = time.process_time(), 0.0
            for _ in range(setting.steps):
                losses.write(f"{training.step()!r}\n")
            seconds = time.process_time() - began
            phases["data"] = training.waited
            phases["backward"] = seconds - sum(phases.values())
            losses.flush()
            training.code.save(setting.folder / "trained.pth")
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
    model = import_published(setting.folder / "trained.pth").model
    features = open_npy(Path(setting.data) / "precomp" / "test_ims.npy")
    regions = torch.from_numpy(features.astype(np.float32))
    ids, lengths = map(torch.from_numpy, tokenizer.encode(test_captions(setting)))
    embedded = {"theirs": code.embed(setting, tokenizer)}
    with torch.inference_mode():
        embedded["ours"] = (
            _in_parts(model.encode_images, regions),
            _in_parts(model.encode_captions, ids, lengths),
        )
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
