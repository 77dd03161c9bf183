"""The former place of `vse_scale.model.pooling.gpo`, kept until 1.0."""

from vse_scale.model.pooling.gpo import GPO

__all__ = ["GPO"]
