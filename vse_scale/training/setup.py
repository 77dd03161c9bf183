"""What stands before the first step: the checks, the plan, the vocabulary, BatchNorm."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch.distributed as dist

from vse_scale.config import Config
from vse_scale.data.captions import CaptionTokenizer
from vse_scale.data.loader import image_batches
from vse_scale.data.plan import Plan
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import ConfigError
from vse_scale.model.resnet import calibrate_batchnorm
from vse_scale.model.vse import VSEModel
from vse_scale.telemetry.progress import heartbeat
from vse_scale.training.checkpoint import Checkpoints
from vse_scale.training.world import World
from vse_shards.manifest import Manifest


def load_config(path: str, overrides: list[str], ranks: int) -> Config:
    """Read a configuration that ``ranks`` processes can share.

    Raises:
        ConfigError: it is missing or malformed, or its batch does not divide.
    """
    config = Config.load(path, overrides)
    try:
        config.check_layout(ranks)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def check_run(config: Config) -> None:
    """Find what would stop a run before anything is started.

    Raises:
        UserError: the dataset, or the checkpoints that the run would resume from, are missing,
            damaged or do not fit the configuration.
    """
    dataset = ShardDataset(Path(config.data.path), config.data.split)
    make_plan(config, dataset)
    validation_split(config)
    checkpoints = Checkpoints(Path(config.run.dir) / "checkpoints", config.run.keep_checkpoints)
    if found := checkpoints.newest():
        origin, state = found
        state.check(config, dataset.fingerprint, origin)


def make_plan(config: Config, dataset: ShardDataset) -> Plan:
    """Return the order of training that ``config`` asks for.

    Raises:
        ConfigError: the dataset and the batch do not fit together.
    """
    data = config.data
    return Plan(
        dataset.captions_per_sample,
        seed=config.run.seed,
        global_batch=data.global_batch,
        mode=data.mode,
        captions_per_image=data.captions_per_image,
        last_batch=data.last_batch,
        shard_sizes=dataset.shard_sizes,
        shuffle_window=data.shuffle_window,
    )


def validation_split(config: Config) -> ShardDataset | None:
    """Open the validation split: the configured one, or "val" where the dataset has it."""
    split = config.eval.split
    if split is None:
        if "val" not in Manifest.load(Path(config.data.path)).splits:
            return None
        split = "val"
    return ShardDataset(Path(config.data.path), split)


def prepare_tokenizer(
    config: Config, dataset: ShardDataset, folder: Path, *, main: bool
) -> CaptionTokenizer:
    """Load the tokenizer; where none is given, ``main`` makes one from the captions.

    A made one is kept in ``folder`` and read from there when the run goes on.
    """
    text = config.model.text
    # A model to start from brings the vocabulary that its weights know.
    if given := text.tokenizer or config.model.init_from or text.path:
        return CaptionTokenizer.load(Path(given))
    if main and not folder.exists():
        records = (dataset.record(image) for image in range(len(dataset)))
        captions = (caption.text for record in records for caption in record.captions)
        with heartbeat("making a vocabulary from the training captions"):
            if text.encoder == "bigru":
                made = CaptionTokenizer.train_words(captions, text.min_count)
            else:
                made = CaptionTokenizer.train(captions, text.vocab_size)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        made.save(partial)
        partial.rename(folder)
    dist.barrier()
    return CaptionTokenizer.load(folder)


def calibrate(model: VSEModel, dataset: ShardDataset, config: Config, world: World) -> None:
    """Set an untrained backbone's BatchNorm statistics from the first training images."""
    count = min(config.train.calibration_images, len(dataset))
    with heartbeat("calibrating BatchNorm"):
        batches = image_batches(
            dataset,
            np.arange(count),
            model.image_spec,
            batch=config.eval.batch,
            device=world.device,
            threads=config.data.threads,
        )
        calibrate_batchnorm(model.image.backbone, map(model.image_spec.normalise, batches))
    # Another kind of processor could differ in the last bits.
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)
