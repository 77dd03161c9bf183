"""The states of a frozen text encoder, computed before the first step and held from then on."""

from __future__ import annotations

from typing import Any

import torch

from vse_scale.config import Config
from vse_scale.console import Progress, log
from vse_scale.data.mixing import Dataset, caption_texts
from vse_scale.errors import ConfigError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.embedding import evaluating
from vse_scale.model.towers.held import HeldStates
from vse_scale.model.towers.transformer import TransformerTower
from vse_scale.model.vse import VSEModel
from vse_scale.training.alive import tell_alive
from vse_scale.training.engine import autocast_dtype
from vse_scale.world.processes import World


def hold(
    model: VSEModel,
    tokenizer: CaptionTokenizer,
    datasets: tuple[Dataset | None, ...],
    config: Config,
    world: World,
) -> None:
    """Have the text tower look the states of all captions up, where that is wanted.

    The captions are cut into batches of ``eval.batch`` by length, which the ranks share, so that
    the states do not depend on the number of ranks, nor on where a run goes on.

    Raises:
        ConfigError: the tower has no states of its own, or one of them is beyond float16.
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
    )
    with evaluating(model):
        _compute(held, tower, config, world)
    world.across(held.states, "sum")  # each caption is of one rank, and zero on the others
    if not held.states.isfinite().all():
        raise ConfigError(
            "data.hold_captions is true, and the text encoder has states beyond float16's limit, "
            "65,504; set data.hold_captions=false"
        )
    tower.held = held
    size = held.states.numel() * held.states.element_size() / 10**6
    log.info("states of %d captions are held, %.0f MB on each rank", len(held.lengths), size)


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
