"""The published VSE-infinity code beside this project's `Trainer`, on the same region features.

The code is a checkout of the branch `bigru` of https://github.com/woodfrog/vse_infty, read from its
files and patched in memory: to the CPU, to modules that it imports and does not need here, and to
the order, the words and the dropped regions of this project's plan. Rates are of processor time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vse_scale.config import Config
from vse_scale.data.shards import ShardDataset
from vse_scale.model.weights import load_pickled
from vse_scale.retrieval.metrics import DIRECTIONS, METRICS
from vse_scale.retrieval.ranks import recall_at_k

CAPTIONS = 5  # of an image
_UNNEEDED = ("imageio", "nltk", "cv2")  # imported there


@dataclass(frozen=True)
class Setting:
    """Paths, as text, and the sizes of a comparison: all that a process needs to train.

    Attributes:
        checkout: of the published code.
        data: folder with precomp/.
        work: scratch folder with shards, vocabulary and first weights.
        batch: pairs of a step.
        captions: of an image in a step, which is encoded once for them; 1: pair by pair.
        steps: of a turn.
        alike: whether both compute the same: no region is left out, so that the published BatchNorm
            sees no padding, and an image's captions are no negatives of each other there either.
        overrides: of our configuration.
    """

    checkout: str
    data: str
    work: str
    batch: int = 128
    captions: int = 1
    steps: int = 2
    alike: bool = False
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The scratch folder."""
        return Path(self.work)

    @property
    def shards(self) -> Path:
        """The dataset that both train on."""
        return self.folder / "shards"

    def config(self, name: str) -> Config:
        """Return the configuration of a run of ours."""
        regions, channels = ShardDataset(self.shards, "train").regions(0).shape
        return Config.load(
            "coco_region_bigru",
            [
                f"data.path={self.shards}",
                f"data.global_batch={self.batch}",
                f"data.mode={'pairs' if self.captions == 1 else 'images'}",
                f"data.captions_per_image={self.captions}",
                f"model.image.max_regions={regions}",
                f"model.image.region_channels={channels}",
                f"model.image.drop_cells={str(not self.alike).lower()}",
                f"model.init_from={self.folder / 'start'}",
                "eval.split=null",
                "telemetry.prometheus_port=null",
                "telemetry.tensorboard=false",
                f"run.dir={self.folder / name}",
                *self.overrides,
            ],
        )


class PublishedCode:
    """The published code, its modules patched in memory.

    Args:
        setting: of the comparison.
        vocab_size: number of token ids.
    """

    def __init__(self, setting: Setting, vocab_size: int) -> None:
        sys.path.insert(0, setting.checkout)
        for name in _UNNEEDED:
            sys.modules[name] = ModuleType(name)
        sys.modules["imageio"].imread = None  # type: ignore[attr-defined]
        torch.Tensor.cuda = lambda tensor, *_: tensor  # type: ignore[method-assign]
        import arguments  # type: ignore[import-not-found]
        from lib import evaluation, loss, vse  # type: ignore[import-not-found]
        from lib.datasets import image_caption  # type: ignore[import-not-found]

        self.evaluation, self.data, self.loss = evaluation, image_caption, loss
        collate = image_caption.collate_fn

        def collated(items: Any) -> tuple[Any, ...]:
            *tensors, rows = collate(items)
            return *tensors, list(rows)  # numpy takes a tuple for several dimensions by now

        self.data.collate_fn = collated
        channels = ShardDataset(setting.shards, "train").regions(0).shape[1]
        # The options of its train_region.sh; the others are defaults.
        self.options = arguments.get_argument_parser().parse_args(
            ["--img_dim", str(channels), "--learning_rate", ".0005", "--data_name", "own"]
        )
        self.options.vocab_size = vocab_size
        torch.manual_seed(0)
        self.model = vse.VSEModel(self.options)
        self.model.logger = evaluation.LogCollector()

    def save(self, path: Path) -> None:
        """Write a checkpoint as it does."""
        torch.save({"model": self.model.state_dict(), "opt": self.options, "epoch": 0}, path)

    def load(self, path: Path) -> None:
        """Take the weights of a checkpoint."""
        self.model.load_state_dict(load_pickled(path, [argparse.Namespace])["model"])

    def pass_over_own_captions(self, rows: Sequence[int]) -> None:
        """Have its loss of the next step pass over all captions of an image, not one of them.

        Args:
            rows: the captions of the step.
        """
        images = torch.tensor(rows) // CAPTIONS
        same = (images[:, None] == images).float()
        self.loss.torch = SimpleNamespace(eye=lambda _: same, cuda=torch.cuda)

    def dataset(self, data: str, split: str, targets: Iterator[Sequence[int]]) -> Any:
        """Return its dataset of a split; captions become the ``targets``, in order."""
        self.data.process_caption = lambda *_: Tensor(next(targets))
        train = split == "train"
        return self.data.PrecompRegionDataset(data, "own", split, None, self.options, train)


def their_figures(evaluation: Any, images: Any, captions: Any) -> list[float]:
    """Return R@1, R@5, R@10, median and mean rank, image to text and back, by the published code.

    Args:
        evaluation: its module.
        images: (N, D) float64.
        captions: (5 N, D) float64.
    """
    scores = evaluation.compute_sim(images, captions)
    figures = (*evaluation.i2t(len(images), scores), *evaluation.t2i(len(images), scores))
    return [float(figure) for figure in figures]


def our_figures(images: Any, captions: Any) -> list[float]:
    """Return the same figures by this project."""
    recalls = recall_at_k(images, captions, np.arange(len(captions)) // CAPTIONS)
    return [float(getattr(recalls.ways[key], name)) for key in DIRECTIONS for name in METRICS]
