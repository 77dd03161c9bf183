"""The protocols by name, each imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vse_shards.parts import Registry

if TYPE_CHECKING:
    # The command's help lists the names, and should not wait for torch.
    from vse_scale.retrieval.protocols.base import RankingProtocol

_HERE = "vse_scale.retrieval.protocols"

PROTOCOLS: Registry[RankingProtocol] = Registry(
    "protocol",
    "vse_scale.protocols",
    {
        "plain": f"{_HERE}.folds:Plain",
        "coco-1k": f"{_HERE}.folds:Coco1K",
        "coco-5k": f"{_HERE}.folds:Coco5K",
        "flickr30k": f"{_HERE}.folds:Flickr30K",
        "cxc": f"{_HERE}.cxc:Cxc",
    },
)
"""Of which one is chosen."""

BESIDE: Registry[RankingProtocol] = Registry(
    "protocol", "vse_scale.protocols_beside", {"eccv": f"{_HERE}.eccv:Eccv"}
)
"""Ranked in addition to the chosen one, each where the option of its name is given."""
