"""The protocols that ``vse-scale eval`` ranks by, from the options that were given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vse_scale.errors import ConfigError

if TYPE_CHECKING:
    from vse_scale.retrieval.protocols.base import RankingProtocol


def open_protocols(
    protocol: str, options: Mapping[str, Any], *, of_similarities: bool
) -> dict[str, RankingProtocol]:
    """Open the chosen protocol and, as their options are given, those that are ranked beside it.

    Args:
        protocol: a name of the registry, or ``module:Class``.
        options: by the names that protocols list them under; what is false was not given.
        of_similarities: they will rank saved similarities rather than embeddings.

    Returns:
        The protocols by name, the chosen one first.

    Raises:
        ConfigError: an option is missing or of another protocol, or similarities do not suffice.
        PartError: there is no such protocol.
    """
    from vse_scale.retrieval.protocols.registry import BESIDE, PROTOCOLS

    beside = {name: BESIDE.find(name) for name in BESIDE.names() if options.get(name)}
    own = {name: value for name, value in options.items() if value and name not in beside}
    chosen = PROTOCOLS.find(protocol)
    for option, value in chosen.required.items():
        if option not in own:
            raise ConfigError(f"--protocol {protocol} needs {_flag(option)} {value}")
    if not own.keys() <= set(chosen.options):
        known = {name: PROTOCOLS.find(name).options for name in PROTOCOLS.names()}
        owner = next(name for name, listed in known.items() if own.keys() & set(listed))
        flags = " and ".join(map(_flag, known[owner]))
        raise ConfigError(f"{flags} are of --protocol {owner}, not of {protocol}")
    opened = {protocol: chosen(**own)}
    opened |= {name: kind(**{name: options[name]}) for name, kind in beside.items()}
    refusing = [name for name, one in opened.items() if not one.takes_similarities]
    if of_similarities and refusing:
        raise ConfigError(
            "--similarities are of images and captions alone; for "
            f"{' and '.join(refusing)} you need --embeddings"
        )
    return opened


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
