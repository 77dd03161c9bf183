"""Bounds on what a configuration may ask for, checked before anything of it is built."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from vse_scale.errors import ModelError

MOST_LAYERS = 1000  # of any kind; the deepest networks in use have some hundreds
MOST_WIDTH = 65_536  # channels of an embedding
MOST_TOKENS = 2**24  # of a vocabulary
MOST_PIXELS = 16_384  # of an image's side

_STACKED = re.compile(r"layers|depths?$|n_layer$|num_blocks|experts$")
_USUAL_WIDTH = 16_384
_TABLE = re.compile(r"vocab|position|_token_id|n_words")  # one row each, usually many


def check_architecture(config: Any, where: str, build: Callable[[Any], Any]) -> None:
    """Refuse a configuration of transformers whose model could not be held, before it is built.

    Args:
        config: of an encoder.
        where: what an error message calls it.
        build: makes the model of ``config`` on torch's default device.

    Raises:
        ModelError: it asks for too many layers, or for more weights than this machine has memory.
    """
    unusual = False
    for key, value in _integers(config.to_dict()):
        if _STACKED.search(key) and value > MOST_LAYERS:
            raise ModelError(f"{where}: {key} is {value!r:.40}; give at most {MOST_LAYERS}")
        most = 2**20 if _TABLE.search(key) else _USUAL_WIDTH
        unusual |= value > most
    # Planning lays models out that other machines will hold.
    if not unusual or torch.get_default_device().type == "meta":
        return
    with torch.device("meta"):
        check_memory(where, build(config))


def check_memory(where: str, model: nn.Module) -> None:
    """Refuse a model whose float32 weights this machine could not hold.

    Args:
        where: what an error message calls it.
        model: laid out on torch's meta device.

    Raises:
        ModelError: it is larger than this machine's memory.
    """
    needed = 4 * sum(parameter.numel() for parameter in model.parameters())
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > held:
        raise ModelError(
            f"{where}: asks for {needed / 1e9:.0f} GB of weights, and this machine has "
            f"{held / 1e9:.0f} GB of memory; give smaller sizes"
        )


def check_most(where: str, **values: tuple[int, int]) -> None:
    """Raise ModelError for the first of ``values``, name=(value, most), that is not 0 to most."""
    for name, (value, most) in values.items():
        if not 0 <= value <= most:
            limit = "at least 0" if value < 0 else f"at most {most}"
            raise ModelError(f"{where}{name} is {value!r:.40}; give {limit}")


def _integers(nested: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from _integers({str(name): inner for name, inner in value.items()})
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, int) and not isinstance(one, bool):
                yield key, one
