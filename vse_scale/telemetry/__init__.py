"""The former place of logging, records and metrics of a run, kept until 1.0."""

import importlib
import sys

_MOVED = {
    "collapse": "training.watch.collapse",
    "journal": "run.journal",
    "metrics": "training.watch.prometheus",
    "progress": "console",
    "system": "run.system",
    "tensorboard": "training.watch.tensorboard",
}
for _old, _new in _MOVED.items():
    # A module that is known by two names is one module: isinstance and patches agree.
    _module = importlib.import_module(f"vse_scale.{_new}")
    sys.modules[f"{__name__}.{_old}"] = _module
    globals()[_old] = _module
