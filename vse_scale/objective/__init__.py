"""The loss: negatives out of the whole global batch, exact gradients, no gradient traffic."""

from vse_scale.objective.cached import cached_backward
from vse_scale.objective.hinge import hinge_loss
from vse_scale.objective.negatives import HingeResult, global_hinge_loss

__all__ = ["HingeResult", "cached_backward", "global_hinge_loss", "hinge_loss"]
