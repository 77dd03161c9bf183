"""Training by the published code in the order of this project's plan, a step a call."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vse_scale.bench.published import CAPTIONS, PublishedCode, Setting
from vse_scale.data.loader import Loader
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.spec import InputSpec
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.training.setup import make_plan


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


class PublishedTraining:
    """The published dataset, collation, model, loss and optimizer, from the first weights.

    Args:
        setting: of the comparison.
        count: most steps.

    Attributes:
        code: the published code.
        steps_per_epoch: of its loader, which leaves the rest out.
        waited: processor seconds that the batches of all steps have taken.
    """

    def __init__(self, setting: Setting, count: int) -> None:
        steps = recorded(setting, count)
        tokenizer = CaptionTokenizer.load(setting.folder / "start")
        self.code = PublishedCode(setting, tokenizer.vocab_size)
        self.code.load(setting.folder / "first.pth")
        draws = (row for step in steps for row in step.draws)
        np.random.rand = lambda count: np.ones(count) if setting.alike else next(draws)  # type: ignore[assignment]
        words = (ids for step in steps for ids in step.ids)
        dataset = self.code.dataset(setting.data, "train", words)
        self._batches = iter(
            torch.utils.data.DataLoader(
                dataset,
                batch_sampler=[step.rows for step in steps],
                collate_fn=self.code.data.collate_fn,
            )
        )
        self._setting, self._number = setting, 0
        self.steps_per_epoch = len(dataset) // setting.batch
        self.waited = 0.0

    def step(self) -> float:
        """Train on the next batch as its `train.py`; return the loss."""
        before = time.thread_time()
        images, lengths, captions, sizes, rows = next(self._batches)
        self.waited += time.thread_time() - before
        model = self.code.model
        if self._setting.alike:
            self.code.pass_over_own_captions(rows)
        if self._number == self.steps_per_epoch * self._setting.warmup_epochs:
            model.set_max_violation(True)
        model.train_start()
        model.train_emb(images, captions, sizes, image_lengths=lengths)
        self._number += 1
        return float(model.logger.meters["Le"].val)
