"""Preparations for the first step: the checks, the plan, the vocabulary, BatchNorm."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vse_scale.config import Config
from vse_scale.config.resume import keys_on_purpose
from vse_scale.console import log
from vse_scale.data.loader import image_batches
from vse_scale.data.mixing import (
    Dataset,
    caption_texts,
    folder_with,
    open_datasets,
)
from vse_scale.data.plan import ORDER, Plan, PlanError
from vse_scale.data.producer import batches_apart
from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingOptions
from vse_scale.errors import ConfigError, ModelError
from vse_scale.files import whole_folder
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.folder import settings_folder
from vse_scale.model.towers.base import ImageSettings, TextSettings
from vse_scale.model.towers.batchnorm import calibrate_batchnorm
from vse_scale.model.towers.regions import RegionSettings
from vse_scale.model.vse import VSEModel
from vse_scale.run.folder import RunFolder
from vse_scale.training.alive import long_work, tell_alive
from vse_scale.training.checkpoint import Checkpoints
from vse_scale.training.schedule import Schedule
from vse_scale.training.watch.observers import find_observers
from vse_scale.world.processes import World

# Remedies for a dataset without what the image tower takes.
_OTHER_TOWER = {
    "images": "set model.image.backbone=regions",
    "regions": "choose a model.image.backbone that takes pixels",
}
# Keys that set the arguments of a `Plan`, whose messages name the arguments.
_KEYS_OF_PLAN = {
    "captions_per_sample": "data.split",
    "global_batch": "data.global_batch",
    "mode": "data.mode",
    "captions_per_image": "data.captions_per_image",
    "last_batch": "data.last_batch",
    "shuffle_window": "data.shuffle_window",
    "streams": "data.streams",
    "weights": "data.weights",
}


def load_config(
    path: str, overrides: Sequence[str], ranks: int, resume_with: Sequence[str] = ()
) -> Config:
    """Read a configuration that ``ranks`` processes can share.

    Args:
        path: of the file, or a recipe's name.
        overrides: of its keys, key=value.
        ranks: number of processes.
        resume_with: further ones, which the run changes from its newest checkpoint on.

    Raises:
        ConfigError: it is missing or malformed, its batch does not divide, or a key of
            ``resume_with`` cannot be changed.
    """
    changed = list(resume_with)
    if changed:
        changed.append(f"run.resume_with=[{', '.join(keys_on_purpose(changed, Config))}]")
    config = Config.load(path, [*overrides, *changed])
    try:
        config.check_layout(ranks)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def check_run(config: Config, ranks: int) -> None:
    """Check a run before anything is started.

    Raises:
        UserError: the dataset, an observer, the files that the model starts from, or the
            checkpoints that the run would resume from, are missing, damaged or do not fit the
            configuration.
    """
    find_observers(config)
    folder = RunFolder(Path(config.run.dir)).checkpoints_folder
    found = Checkpoints(folder, config.run.keep_checkpoints).newest()
    dataset, _, _ = open_data(config, ranks, found[1].order if found else ORDER)
    if found:
        origin, state = found
        state.check(config, dataset.fingerprint, origin, dataset.grew_from)
    elif absent := next(absent_files(config), None):
        raise ConfigError(f"{absent[0]} is {absent[1]}, which does not exist; check the path")


def absent_files(config: Config) -> Iterator[tuple[str, str]]:
    """Yield key and path of what the model starts from, where there is no such file or folder."""
    model = config.model
    named = {
        "model.image.weights": getattr(model.image, "weights", None),
        "model.image.path": getattr(model.image, "path", None),
        "model.text.path": getattr(model.text, "path", None),
        "model.text.tokenizer": model.text.tokenizer,
        "model.init_from": model.init_from,
    }
    yield from ((key, path) for key, path in named.items() if path and not Path(path).exists())


def open_data(
    config: Config, ranks: int, order: int = ORDER
) -> tuple[Dataset, ShardDataset | None, Plan]:
    """Open the splits to train on and to validate on, and plan the order of training.

    Args:
        config: of the run.
        ranks: number of ranks.
        order: version of the order that the run was begun with.

    Raises:
        DatasetError: a split is missing, damaged, or lacks the inputs of the model.
        ConfigError: the dataset does not fit together with the batch or with the staging cache, or
            its region features are of another size.
    """
    data = config.data
    staging = StagingOptions(
        data.cache_dir,
        data.cache_gb,
        data.cache_ahead,
        folder_name="data.cache_dir",
        limit_name="data.cache_gb",
        on_block=tell_alive,  # a storage may be slow
    )
    dataset = open_datasets(data.folders, data.split, staging)
    tell_alive()
    validation = _validation_split(config, staging)
    tell_alive()
    plan = make_plan(config, dataset, order)
    if dataset.remote:
        _check_cache(config, plan, dataset, validation, ranks)
    for opened in (dataset, validation):
        if opened is not None:
            _check_inputs(config.model.image, opened)
            tell_alive()
    return dataset, validation, plan


def _validation_split(config: Config, staging: StagingOptions) -> ShardDataset | None:
    """Open the validation split: the configured one, or "val" where the dataset has it.

    Of several datasets it is the first's that has one.
    """
    wanted = config.eval.split or "val"
    folder = folder_with(wanted, config.data.folders)
    if folder is None and config.eval.split is None:
        return None
    return ShardDataset(folder or config.data.folders[0], wanted, staging)


class Counted(Protocol):
    """The numbers of a dataset that its order depends on, as `ShardDataset` has them."""

    @property
    def folder(self) -> str | Path:
        """The dataset's folder, for messages."""

    @property
    def captions_per_sample(self) -> npt.NDArray[Any]:
        """Captions of each image, (I,) integers."""

    @property
    def shard_sizes(self) -> Sequence[int]:
        """Images of each shard."""

    @property
    def dataset_sizes(self) -> Sequence[int]:
        """Images of each dataset, in order."""

    def __len__(self) -> int:
        """Return the number of images."""


def make_plan(config: Config, dataset: Counted, order: int = ORDER) -> Plan:
    """Return the order of training that ``config`` asks for, in version ``order``.

    Raises:
        ConfigError: the dataset and the batch do not fit together.
    """
    data = config.data
    if len(dataset) < 2:
        raise ConfigError(
            f"{dataset.folder}: its split {data.split} holds one image, so that no pair has a "
            "negative and nothing is learnt; train on two or more"
        )
    try:
        return Plan(
            dataset.captions_per_sample,
            seed=config.run.seed,
            global_batch=data.global_batch,
            mode=data.mode,
            captions_per_image=data.captions_per_image,
            last_batch=data.last_batch,
            shard_sizes=dataset.shard_sizes,
            shuffle_window=data.shuffle_window,
            dataset_sizes=dataset.dataset_sizes,
            weights=data.weights,
            streams=data.streams,
            order=order,
        )
    except PlanError as error:
        raise error.renamed(_KEYS_OF_PLAN) from None


def _check_cache(
    config: Config,
    plan: Plan,
    dataset: Dataset,
    validation: ShardDataset | None,
    ranks: int,
) -> None:
    """Refuse a staging cache that training and validation could fill with shards in use."""
    data = config.data
    # Each rank announces what comes next in the streams of its own part.
    ahead = min(ranks, plan.streams) * data.cache_ahead
    needed = dataset.room(plan.shards_within(batches_apart(data.prefetch)) + ahead)
    if validation is not None:  # every rank reads a part of its own, in order
        needed += validation.room(ranks * (1 + data.cache_ahead))
    if data.cache_gb * 10**9 < needed:
        window = data.shuffle_window
        what = f"windows of {window} shards take" if window else "a shuffle of all shards takes"
        remedy = f"data.shuffle_window below {window}" if window else "data.shuffle_window"
        raise ConfigError(
            f"data.cache_gb is {data.cache_gb:g}, and {what} up to "
            f"{math.ceil(needed / 10**8) / 10:.1f} of it; raise it, or set {remedy}"
        )


def _check_inputs(image: ImageSettings, dataset: Dataset) -> None:
    """Raise an error unless ``dataset`` holds what the image tower takes."""
    dataset.check_holds(image.takes, _OTHER_TOWER[image.takes])
    if not isinstance(image, RegionSettings):
        return
    channels = dataset.regions(0).shape[1]
    most = dataset.most_regions()
    for key, value, found, fits in (
        ("region_channels", image.region_channels, channels, channels == image.region_channels),
        ("max_regions", image.max_regions, most, most <= image.max_regions),
    ):
        if not fits:
            raise ConfigError(
                f"model.image.{key} is {value}, and {dataset.folder} has {found}; set it so"
            )


def tokenizer_source(config: Config) -> Path | None:
    """Return the folder or file of the tokenizer; None where the run makes one."""
    # A model to start from brings the vocabulary that its weights know.
    started = config.model.init_from and settings_folder(Path(config.model.init_from))
    given = config.model.text.tokenizer or started or config.model.text.source
    return Path(given) if given else None


def prepare_tokenizer(
    config: Config, dataset: Dataset, run: RunFolder, world: World, vocabulary: str = ""
) -> CaptionTokenizer:
    """Load the tokenizer; where none is given, the main rank makes one from the captions.

    A made one is kept in the run's folder, which the main rank alone sees, and is read from there
    when the run goes on. Where it is lost or damaged it is taken out of the best model, else made
    again.

    Args:
        config: of the run.
        dataset: whose captions it is made from.
        run: folder of the run.
        world: of this rank.
        vocabulary: digest of the tokens that the run was begun with, "" where nobody knows; a
            tokenizer of other ones is returned for the caller to refuse, and is not kept.
    """
    if given := tokenizer_source(config):
        return CaptionTokenizer.load(given)
    own_files = _tokenizer_files(config, dataset, run, vocabulary) if world.main else {}
    files: dict[str, bytes] = world.from_main(own_files)
    with tempfile.TemporaryDirectory() as own:
        for name, content in files.items():
            Path(own, name).write_bytes(content)
        return CaptionTokenizer.load(Path(own))


def _tokenizer_files(
    config: Config, dataset: Dataset, run: RunFolder, vocabulary: str
) -> dict[str, bytes]:
    """Return the files of the run's tokenizer, which is made and kept where there is none."""
    folder = run.tokenizer_folder
    if _tokenizer_in(folder) is None:
        made = _tokenizer_of_model(run, vocabulary)
        if made is None:
            some = config.data.vocabulary_shards
            part = ""
            if some is not None:
                part = f" of {some:,} shard{'s'[: some - 1]}"
                log.info(
                    "the vocabulary is made from the captions%s (data.vocabulary_shards)", part
                )
            with long_work(f"making a vocabulary from the training captions{part}"):
                made = config.model.text.make_tokenizer(caption_texts(dataset, some))
        if vocabulary not in ("", made.digest()):
            with tempfile.TemporaryDirectory() as aside:
                made.save(aside)
                return _files_in(Path(aside))
        with whole_folder(folder) as partial:
            made.save(partial)
    return _files_in(folder)


def _files_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _tokenizer_of_model(run: RunFolder, vocabulary: str) -> CaptionTokenizer | None:
    """Return the tokenizer of the run's best model, where it is that of the run's weights."""
    found = _tokenizer_in(run.model_folder) if vocabulary else None
    if found is None or found.digest() != vocabulary:
        return None
    log.info("%s: is not there, taken from %s", run.tokenizer_folder, run.model_folder)
    return found


def _tokenizer_in(folder: Path) -> CaptionTokenizer | None:
    try:
        return CaptionTokenizer.find(folder)
    except ModelError as error:
        log.warning("%s; another is looked for, or made from the captions", error)
        return None


def calibrate(model: VSEModel, dataset: Dataset, config: Config, world: World) -> None:
    """Set an untrained backbone's BatchNorm statistics from the first training images."""
    count = min(config.train.calibration_images, len(dataset))
    with long_work("calibrating BatchNorm"):
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
        world.broadcast(buffer)


def announce(
    config: Config, dataset: Dataset, plan: Plan, world: World, first: int, schedule: Schedule
) -> None:
    """Log what is trained on, from step ``first`` to the end of ``schedule``, and by whom."""
    log.info(
        "%s: %d images, %d pairs; %d steps an epoch, steps %d to %d; batch %d over %d rank%s, "
        "ZeRO-%d, %s",
        " + ".join(config.data.folders), len(dataset), dataset.pairs,
        plan.steps_per_epoch, first, schedule.total_steps,
        config.data.global_batch, world.ranks, "s"[: world.ranks - 1],
        config.engine.zero_stage, world.device.type,
    )  # fmt: skip
    if not world.main:
        return
    if config.model.init_from is None:
        _warn_of_random_weights("model.image", "weights=FILE", config.model.image)
        _warn_of_random_weights("model.text", "path=FOLDER", config.model.text)
    of_images = [] if config.model.init_from else config.model.image.doubts()
    for doubt in (*of_images, *schedule.doubts(first)):
        log.warning("%s", doubt)


def _warn_of_random_weights(key: str, remedy: str, side: ImageSettings | TextSettings) -> None:
    """Warn where weights are random and the settings keep them so."""
    kept = {"frozen": side.frozen, "train_last": side.train_last, "lora": getattr(side, "lora", 0)}
    named = next((name for name, value in kept.items() if value), None)
    if named is not None and side.source is None:
        log.warning(
            "%s.%s is %s, and the %s weights are random and stay so; give it weights, such as "
            "%s.%s, or a model.init_from",
            key, named, "true" if named == "frozen" else "set",
            "backbone's" if key == "model.image" else "encoder's", key, remedy,
        )  # fmt: skip
