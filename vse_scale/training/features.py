"""The features of a frozen image tower, computed before the first step and read from then on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from vse_scale.config import Config
from vse_scale.console import Progress, log
from vse_scale.data.decode import image_batches
from vse_scale.data.features import StoredFeatures
from vse_scale.data.mixing import Dataset
from vse_scale.errors import ConfigError
from vse_scale.files import unwritable
from vse_scale.model.embedding import evaluating
from vse_scale.model.towers.grid import GridTower
from vse_scale.model.vse import VSEModel
from vse_scale.training.alive import tell_alive
from vse_scale.training.engine import autocast_dtype
from vse_scale.world.processes import World

_LAYOUT = 1  # of the files; another one makes other folders
# Settings that change no feature as it is kept.
_LATER = ("drop_cells", "drop_channels", "frozen", "lora", "power", "train_last")


def cache_features(
    model: VSEModel, datasets: tuple[Dataset | None, ...], config: Config, world: World
) -> None:
    """Have ``datasets`` serve the backbone's features in place of pixels, where that is wanted.

    Features that are not stored yet are computed, shards in turn by all ranks. A shard's images
    are cut into batches of ``eval.batch`` from its first one on, so that the values do not depend
    on the number of ranks. A run that is stopped here goes on with the next shard.

    Raises:
        ConfigError: the folder lacks the room, or not all ranks see it, or the tower is of
            another package and has no features of its own.
        OutputError: it cannot be written.
        DatasetError: a feature is beyond float16, or an image cannot be decoded.
    """
    if config.data.feature_cache is None:
        return
    cells, channels = model.grid_cells, model.image.backbone.channels
    folder = Path(config.data.feature_cache).expanduser() / _key(model, config, world)
    for dataset in datasets:
        if dataset is None:
            continue
        stored = StoredFeatures(
            folder, dataset.shard_digests, dataset.shard_sizes, (cells, channels)
        )
        # The others look when all is written: a shared folder may remember what was not there.
        missing: list[int] = world.from_main(stored.missing() if world.main else None)
        if missing:
            _check_room(stored, missing)
            with evaluating(model):
                _compute(stored, missing, model, dataset, config, world)
        _check_seen(stored, world)
        if model.image.pools_before:
            stored.pool_by(partial(_pooled, model.image))
        dataset.features = stored
    log.info("features of the frozen image tower are read from %s", folder)


def _key(model: VSEModel, config: Config, world: World) -> str:
    """Return a digest of all that decides an image's features: weights, settings, pixels, dtype."""
    tower: Any = model.image
    if not isinstance(model.image, GridTower):
        raise ConfigError(
            f"data.feature_cache is set, and model.image.backbone={config.model.image.backbone} "
            "does not tell its features from the rest; set data.feature_cache=null"
        )
    settings = asdict(tower.standalone())
    decisive = {
        "layout": _LAYOUT,
        "tower": {key: value for key, value in settings.items() if key not in _LATER},
        "pixels": model.image_spec.to_dict(),
        "precision": str(autocast_dtype(config, world.device)),
    }
    return str(world.from_main(digest_of(decisive, tower.backbone)))


def digest_of(decisive: dict[str, Any], network: nn.Module) -> str:
    """Return a digest of settings and of a network's weights."""
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:24]


@torch.no_grad()
def _pooled(tower: Any, cells: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Return the vector (C,) that a tower pools an image's features (K, C) into."""
    grid = torch.from_numpy(cells[None].astype(np.float32))
    vector: npt.NDArray[np.float32] = tower.pooled(grid)[0].numpy()
    return vector


def _compute(
    stored: StoredFeatures,
    missing: list[int],
    model: VSEModel,
    dataset: Dataset,
    config: Config,
    world: World,
) -> None:
    """Compute the features of the shards ``missing`` and write them, all ranks in step."""

    def batches(shards: list[int]) -> Iterator[None]:
        for shard in shards:
            features, done = stored.room_for(shard), 0
            decoded = image_batches(
                dataset, stored.rows(shard), model.image_spec,
                batch=config.eval.batch, device=world.device, threads=config.data.threads,
            )  # fmt: skip
            for pixels in decoded:
                with torch.autocast(world.device.type, dtype, enabled=dtype is not None):
                    grid = model.image.features(model.image_spec.normalise(pixels))
                found = stored.rounded(shard, grid.float().cpu().numpy())
                features[done : done + len(found)] = found
                done += len(found)
                yield
            try:
                stored.write(shard, features)
            except OSError as error:
                raise unwritable(str(stored.folder), error) from error

    dtype = autocast_dtype(config, world.device)
    counts = [-(-len(stored.rows(shard)) // config.eval.batch) for shard in missing]
    turns = max(sum(counts[rank :: world.ranks]) for rank in range(world.ranks))
    work = batches(missing[world.rank :: world.ranks])
    # One batch at a time, so that no rank waits longer for another than a collective may take.
    what = f"features of {dataset.split} into {stored.folder}:"
    progress = Progress(what, turns, unit="batches a rank", visible=world.main)
    for _ in range(turns + 1):
        next(work, None)
        tell_alive()
        world.barrier()
        progress.advance()
    progress.close()


def _check_room(stored: StoredFeatures, missing: list[int]) -> None:
    needed = sum(map(stored.bytes, missing))
    there = next(path for path in stored.folder.absolute().parents if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ConfigError(
            f"data.feature_cache: features take {needed / 10**9:.1f} GB, and {there} has "
            f"{free / 10**9:.1f} GB free; name another folder, or set data.feature_cache=null"
        )


def _check_seen(stored: StoredFeatures, world: World) -> None:
    """Raise ConfigError on every rank where one of them does not see all files."""
    unseen = torch.tensor([len(stored.missing())])
    world.across(unseen, "max")
    if int(unseen):
        raise ConfigError(
            f"data.feature_cache: {int(unseen)} files in {stored.folder}, which other ranks wrote, "
            "are not seen by all; name a folder that every machine shares"
        )
