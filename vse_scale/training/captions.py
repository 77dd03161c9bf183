"""The states of a frozen text encoder, computed before the first step and held from then on."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vse_scale.config import Config
from vse_scale.console import Progress, log
from vse_scale.data.mixing import Dataset, caption_texts
from vse_scale.errors import ConfigError
from vse_scale.files import unwritable, whole_file
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.embedding import evaluating
from vse_scale.model.towers.held import HeldStates
from vse_scale.model.towers.transformer import TransformerTower
from vse_scale.model.vse import VSEModel
from vse_scale.training.alive import tell_alive
from vse_scale.training.engine import autocast_dtype
from vse_scale.training.features import digest_of
from vse_scale.world.processes import World
from vse_shards.npy import open_npy

_LAYOUT = 1  # of the file; another one makes other names
# Settings that change no state as it is held.
_LATER = ("drop_channels", "frozen", "train_last")


def hold(
    model: VSEModel,
    tokenizer: CaptionTokenizer,
    datasets: tuple[Dataset | None, ...],
    config: Config,
    world: World,
) -> None:
    """Have the text tower look the states of all captions up, where that is wanted.

    The captions are cut into batches of ``eval.batch`` by length, which the ranks share, so that
    the states do not depend on the number of ranks, nor on where a run goes on. With
    ``data.feature_cache`` they are kept there, and read by runs of the same captions and encoder.

    Raises:
        ConfigError: the tower has no states of its own, or one of them is beyond float16.
        OutputError: the folder cannot be written.
    """
    if not config.data.hold_captions:
        return
    tower: Any = model.text
    if not isinstance(tower, TransformerTower):
        raise ConfigError(
            f"data.hold_captions is true, and model.text.encoder={config.model.text.encoder} does "
            "not tell its states from the rest; set data.hold_captions=false"
        )
    texts = [text for one in datasets if one is not None for text in caption_texts(one)]
    ids, lengths = tokenizer.encode(texts, max_tokens=model.input_spec.max_tokens)
    held = HeldStates(
        torch.from_numpy(ids),
        torch.from_numpy(lengths),
        tower.projection.in_features,
        world.device,
        tower.pool,
    )
    kept = None
    if config.data.feature_cache is not None:
        folder = Path(config.data.feature_cache).expanduser()
        kept = folder / f"captions-{_key(tower, held, config, world)}.npy"
    read = kept is not None and _read(held, kept, world)
    if not read:
        with evaluating(model):
            _compute(held, tower, config, world)
        world.across(held.states, "sum")  # each caption is of one rank, and zero on the others
    if not held.states.isfinite().all():
        raise ConfigError(
            "data.hold_captions is true, and the text encoder has states beyond float16's limit, "
            "65,504; set data.hold_captions=false"
        )
    if kept is not None and not read and world.main:
        _write(held, kept)
    tower.held = held
    size = held.states.numel() * held.states.element_size() / 10**6
    log.info("states of %d captions are held, %.0f MB on each rank", len(held.lengths), size)


def _key(tower: TransformerTower, held: HeldStates, config: Config, world: World) -> str:
    """Return a digest of all that decides the states: weights, settings, captions, dtype."""
    settings = asdict(tower.standalone())
    captions = hashlib.sha256(held.token_ids.numpy().tobytes() + held.lengths.numpy().tobytes())
    decisive = {
        "layout": _LAYOUT,
        "tower": {key: value for key, value in settings.items() if key not in _LATER},
        "captions": captions.hexdigest(),
        "states": f"{held.states.dtype} {tuple(held.states.shape)}",
        "pool": type(tower.pool).__name__,
        "precision": str(autocast_dtype(config, world.device)),
    }
    return str(world.from_main(digest_of(decisive, tower.encoder)))


def _read(held: HeldStates, kept: Path, world: World) -> bool:
    """Fill ``held`` from a file; return whether every rank has a whole one."""
    lacking = torch.ones(1)
    if kept.exists():
        try:
            found = torch.from_numpy(np.array(open_npy(kept)))
            if (found.shape, found.dtype) != (held.states.shape, held.states.dtype):
                raise ValueError(f"holds {found.dtype} {tuple(found.shape)}")
            held.states.copy_(found)
            lacking.zero_()
        except (OSError, ValueError) as error:
            log.warning("%s: is no whole file of states (%s); computed again", kept, error)
    world.across(lacking, "max")
    if lacking:
        held.states.zero_()
    return not lacking


def _write(held: HeldStates, kept: Path) -> None:
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(kept, shared=True) as partial, partial.open("wb") as file:
            np.save(file, held.states.cpu().numpy())
    except OSError as error:
        raise unwritable(str(kept.parent), error) from error


def _compute(held: HeldStates, tower: TransformerTower, config: Config, world: World) -> None:
    """Fill this rank's part of ``held``, all ranks in step."""
    batch, dtype = config.eval.batch, autocast_dtype(config, world.device)
    starts = range(0, len(held.lengths), batch)
    turns = -(-len(starts) // world.ranks)
    progress = Progress("states of captions:", turns, unit="batches a rank", visible=world.main)
    own = starts[world.rank :: world.ranks]
    for turn in range(turns):
        for start in own[turn : turn + 1]:
            lengths = held.lengths[start : start + batch]
            ids = held.token_ids[start : start + batch, : int(lengths.max())]
            with torch.autocast(world.device.type, dtype, enabled=dtype is not None):
                states = tower.states(ids.to(world.device), lengths.to(world.device))
            held.fill(start, states)
        tell_alive()
        world.barrier()
        progress.advance()
    progress.close()
