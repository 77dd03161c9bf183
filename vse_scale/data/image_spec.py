"""The former place of `vse_scale.inputs.pixels`, kept until 1.0."""

from vse_scale.inputs.pixels import ImageSpec

__all__ = ["ImageSpec"]
