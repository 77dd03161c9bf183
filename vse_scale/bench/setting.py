"""The vocabulary, weights and settings from which all implementations start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from vse_scale.bench.job import Job
from vse_scale.bench.peers import Recipe
from vse_scale.config import Config
from vse_scale.data.decode import image_batches
from vse_scale.data.mixing import caption_texts
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import ConfigError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.towers.batchnorm import calibrate_batchnorm
from vse_scale.model.vse import VSEModel
from vse_scale.training.setup import make_plan


def changed(config: Config, **sections: Mapping[str, object]) -> Config:
    """Return ``config`` with other values in some sections, validated again."""
    raw = config.model_dump(mode="json")
    for name, values in sections.items():
        raw[name].update(values)
    return Config.parse(raw)


def tokenizer_of(job: Job) -> Path:
    """Return the folder of the given vocabulary, or of one made from the captions."""
    text = job.config.model.text
    if given := text.tokenizer or job.config.model.init_from or text.source:
        return Path(given)
    made = job.scratch / "tokenizer"
    if not made.is_dir():
        text.make_tokenizer(caption_texts(open_split(job.config, "train"))).save(made)
    return made


def ready(job: Job) -> Config:
    """Return the configuration of most of a training run, with weights to start from.

    All parameters train on the hardest negatives, without a ramp. The weights, with calibrated
    BatchNorm if they are random, and the vocabulary are in ``job.scratch``, and ``model.init_from``
    names them for all implementations alike.

    Raises:
        ConfigError: the plain-torch peer has no such model.
    """
    _check_peer(job.config)
    start = job.scratch / "start"
    settings: dict[str, Mapping[str, object]] = {
        "model": {"init_from": str(start)},
        "objective": {"warmup_epochs": 0, "ramp": False, "mode": "hardest", "reduction": "sum"},
        "train": {"frozen_backbone_epochs": 0, "backbone_warmup_epochs": 0},
        "telemetry": {"prometheus_port": None, "tensorboard": True},
    }
    if not start.is_dir():
        tokenizer = CaptionTokenizer.load(tokenizer_of(job))
        torch.manual_seed(job.config.run.seed)
        limit = job.config.data.max_caption_tokens
        model = VSEModel(job.config.model, tokenizer.vocab_size, tokenizer.pad_id, limit)
        if model.untrained_statistics:
            dataset, cpu = open_split(job.config, "train"), torch.device("cpu")
            first = range(min(len(dataset), 64))
            pixels = image_batches(
                dataset, first, model.image_spec, batch=16, device=cpu, threads=job.cores
            )
            calibrate_batchnorm(model.image.backbone, map(model.image_spec.normalise, pixels))
        model.save_pretrained(start, tokenizer=tokenizer)
    return changed(job.config, **settings)


def open_split(config: Config, split: str) -> ShardDataset:
    """Open a split of the measured dataset."""
    return ShardDataset(config.data.folders[0], split)


def recipe_of(config: Config, tokenizer: str | Path, size: int, grid_cells: int = 0) -> Recipe:
    """Return the ingredients of the published data path's batches: pair by pair, in plan order."""
    dataset = open_split(config, "train")
    # The published order knows no windows, streams or weights, and drops the rest of an epoch.
    order = {"mode": "pairs", "captions_per_image": 1, "last_batch": "drop"}
    order |= {"shuffle_window": 0, "streams": None, "weights": None}
    plan = make_plan(changed(config, data=order), dataset)
    return Recipe(
        dataset, plan, CaptionTokenizer.load(tokenizer), config.data, config.run.seed, size,
        grid_cells,
    )  # fmt: skip


def _check_peer(config: Config) -> None:
    model = config.model
    for key, value, known in (
        ("model.pool", model.pool, "gpo"),
        ("model.text.encoder", model.text.encoder, "huggingface"),
    ):
        if value != known:
            raise ConfigError(f"{key} is {value}, which the plain-torch peer lacks; set {known}")
