"""The former place of `vse_scale.retrieval`, kept until 1.0.

Its names and those of its former modules (``vse_scale.evaluation.cxc`` and so on) lead to where
they are now.
"""

from vse_scale.former import hand_on
from vse_scale.retrieval.ranks import DirectionRecalls, Recalls, recall_at_k

__all__ = ["DirectionRecalls", "Recalls", "recall_at_k"]

hand_on(
    __name__,
    {
        "coco_ids": "retrieval.protocols.coco_ids",
        "correlation": "retrieval.protocols.correlation",
        "cxc": "retrieval.protocols.cxc",
        "cxc_ratings": "retrieval.protocols.cxc_ratings",
        "eccv": "retrieval.protocols.eccv",
        "encode": "retrieval.encode",
        "protocols": "retrieval.protocols.folds",
        "retrieval": "retrieval.ranks",
        "saved": "retrieval.saved",
        "separation": "retrieval.separation",
        "sharing": "world.join",
        "similarities": "retrieval.similarities",
    },
)
