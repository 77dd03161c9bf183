"""The former place of `vse_scale.retrieval`, kept until 1.0.

Its names and those of its former modules (``vse_scale.evaluation.cxc`` and so on) lead to where
they are now.
"""

import importlib
import sys

from vse_scale.retrieval.ranks import DirectionRecalls, Recalls, recall_at_k

__all__ = ["DirectionRecalls", "Recalls", "recall_at_k"]

_MOVED = {
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
}
for _old, _new in _MOVED.items():
    # A module that is known by two names is one module: isinstance and patches agree.
    _module = importlib.import_module(f"vse_scale.{_new}")
    sys.modules[f"{__name__}.{_old}"] = _module
    globals()[_old] = _module
