"""The loss: negatives out of the whole global batch, exact gradients, no gradient traffic."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vse_scale.objective.base import Objective, ObjectiveResult
    from vse_scale.objective.cached import cached_backward
    from vse_scale.objective.hinge import hinge_loss
    from vse_scale.objective.negatives import HingeResult, global_hinge_loss
    from vse_scale.objective.registry import make_objective

_MODULES = {
    "HingeResult": "negatives",
    "Objective": "base",
    "ObjectiveResult": "base",
    "cached_backward": "cached",
    "global_hinge_loss": "negatives",
    "hinge_loss": "hinge",
    "make_objective": "registry",
}

__all__ = [
    "HingeResult",
    "Objective",
    "ObjectiveResult",
    "cached_backward",
    "global_hinge_loss",
    "hinge_loss",
    "make_objective",
]


def __getattr__(name: str) -> Any:
    # On demand, so that a configuration names an objective without importing torch.
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
