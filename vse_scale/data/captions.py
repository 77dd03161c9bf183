"""The former place of `vse_scale.inputs.tokens`, kept until 1.0."""

from vse_scale.inputs.tokens import SPECIAL, CaptionTokenizer

__all__ = ["SPECIAL", "CaptionTokenizer"]
