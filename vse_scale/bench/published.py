"""The published VSE-infinity code beside this project's `Trainer`, on the same region features.

The code is a checkout of https://github.com/woodfrog/vse_infty, of the branch `bigru` or, for BERT,
`master`, read from its files and patched in memory: to the CPU, to modules that it imports and does
not need here, to the encoder in a folder, and to the order, the words and the dropped regions of
this project's plan. Rates are of processor time.
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
from torch import Tensor, nn

from vse_scale.config import Config
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.weights import load_pickled
from vse_scale.objective.hinge import HingeSettings
from vse_scale.retrieval.metrics import DIRECTIONS, METRICS
from vse_scale.retrieval.ranks import recall_at_k

CAPTIONS = 5  # of an image
_BERT_BASE = 768  # channels
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
        seed: of the first weights, the order, the words and the dropped regions.
        encoder: folder of the text encoder, a BERT that trains without dropout, which the codes
            would draw differently; None: a BiGRU.
    """

    checkout: str
    data: str
    work: str
    batch: int = 128
    captions: int = 1
    steps: int = 2
    alike: bool = False
    overrides: tuple[str, ...] = ()
    seed: int = 0
    encoder: str | None = None

    @property
    def folder(self) -> Path:
        """The scratch folder."""
        return Path(self.work)

    @property
    def shards(self) -> Path:
        """The dataset that both train on."""
        return self.folder / "shards"

    @property
    def warmup_epochs(self) -> int:
        """First epochs, in which all violations count."""
        objective = self.config("options").objective
        assert isinstance(objective, HingeSettings)
        return objective.warmup_epochs

    def config(self, name: str) -> Config:
        """Return the configuration of a run of ours."""
        regions, channels = ShardDataset(self.shards, "train").regions(0).shape
        text = []
        if self.encoder is not None:
            text = [f"model.text.path={self.encoder}", "model.dropout=0.0"]
        return Config.load(
            "coco_region_bigru" if self.encoder is None else "coco_region_bert",
            [
                f"data.path={self.shards}",
                f"data.global_batch={self.batch}",
                f"data.mode={'pairs' if self.captions == 1 else 'images'}",
                f"data.captions_per_image={self.captions}",
                f"model.image.max_regions={regions}",
                f"model.image.region_channels={channels}",
                f"model.image.drop_cells={str(not self.alike).lower()}",
                f"model.init_from={self.folder / 'start'}",
                *text,
                f"run.seed={self.seed}",
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
        from lib import encoders, evaluation, loss, vse  # type: ignore[import-not-found]
        from lib.datasets import image_caption  # type: ignore[import-not-found]

        self.evaluation, self.data, self.loss = evaluation, image_caption, loss
        collate = image_caption.collate_fn

        def collated(items: Any) -> tuple[Any, ...]:
            *tensors, rows = collate(items)
            return *tensors, list(rows)  # numpy takes a tuple for several dimensions by now

        self.data.collate_fn = collated
        if setting.encoder is not None:
            _start_from(setting.encoder, encoders)
        config = setting.config("options")
        channels = ShardDataset(setting.shards, "train").regions(0).shape[1]
        # The options of its train_region.sh, of which a comparison may change the width and the
        # warm-up; the others are defaults.
        self.options = arguments.get_argument_parser().parse_args(
            [
                "--data_name=own",
                f"--img_dim={channels}",
                f"--embed_size={config.model.embed_dim}",
                "--learning_rate=.0005",
                f"--vse_mean_warmup_epochs={setting.warmup_epochs}",
            ]
        )
        self.options.vocab_size = vocab_size
        torch.manual_seed(setting.seed)
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
        train = split == "train"
        # In place of a vocabulary. The branch `master` has BERT's tokenizer split words before it
        # asks for their pieces.
        words = SimpleNamespace(
            targets=targets, basic_tokenizer=SimpleNamespace(tokenize=lambda caption: caption)
        )
        self.data.process_caption = lambda words, *_: Tensor(next(words.targets))
        return self.data.PrecompRegionDataset(data, "own", split, words, self.options, train)

    def embed(self, setting: Setting, tokenizer: CaptionTokenizer) -> tuple[Any, Any]:
        """Return embeddings of split test, of images (N, D) and captions (5 N, D), float64."""
        ids, lengths = tokenizer.encode(test_captions(setting))
        targets = (row[:length].tolist() for row, length in zip(ids, lengths, strict=True))
        loader = torch.utils.data.DataLoader(
            self.dataset(setting.data, "test", targets),
            setting.batch,
            collate_fn=self.data.collate_fn,
        )
        with torch.no_grad():
            images, captions = self.evaluation.encode_data(
                self.model, loader, logging=lambda *_: None
            )
        return images[::CAPTIONS], captions


def test_captions(setting: Setting) -> list[str]:
    """Return the captions of split test."""
    file = Path(setting.data) / "precomp" / "test_caps.txt"
    return file.read_text(encoding="utf-8").splitlines()


def _start_from(folder: str, encoders: Any) -> None:
    """Have its text encoder be the BERT in ``folder``, without dropout, where it names BERT-base.

    Args:
        folder: of transformers.
        encoders: its module, whose Linear takes BERT-base's width.
    """
    from transformers import BertModel

    def opened(_: str) -> Any:
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertModel.from_pretrained(folder, **off)

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(width if inputs == _BERT_BASE else inputs, outputs)

    width = BertModel.config_class.from_pretrained(folder).hidden_size
    encoders.BertModel = SimpleNamespace(from_pretrained=opened)
    encoders.nn = SimpleNamespace(**{**vars(nn), "Linear": linear})


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
