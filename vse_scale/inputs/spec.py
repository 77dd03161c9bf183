"""The inputs that a model was trained on: pixels or region features, and how many tokens.

The specification is saved with the model. Training, validation and every command that embeds read
it and nothing else, so that a model gives the same embeddings wherever it is used.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vse_scale.errors import ModelError
from vse_scale.inputs.fields import check_fields, from_fields, is_count
from vse_scale.inputs.pixels import ImageSpec

MAX_TOKENS = 128  # of a caption, where nothing else is said; ours
MODEL_TYPE = "vse_scale"  # transformers' word for the kind of a model's folder, in its config.json


@dataclass(frozen=True)
class RegionSpec:
    """Features of a detector's regions, in place of pixels.

    Attributes:
        channels: numbers that describe a region, C of (N, K, C).
        most: regions of an image at most, K.
    """

    channels: int
    most: int

    def __post_init__(self) -> None:
        checks = (
            ("channels", is_count(self.channels), "a number of channels, at least 1"),
            ("most", is_count(self.most), "a number of regions, at least 1"),
        )
        check_fields(self, "region specification", checks)


@dataclass(frozen=True)
class InputSpec:
    """Everything that a model expects of its inputs.

    Attributes:
        pixels: of an image; None where the model takes region features.
        regions: of an image; None where the model takes pixels.
        max_tokens: of a caption, special tokens included; longer captions are cut.

    Raises:
        ModelError: both or neither of ``pixels`` and ``regions`` are given, or ``max_tokens`` is
            below 1.
    """

    pixels: ImageSpec | None = None
    regions: RegionSpec | None = None
    max_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        if (self.pixels is None) == (self.regions is None):
            raise ModelError("input specification: give either pixels or regions")
        checks = [("max_tokens", is_count(self.max_tokens), "a number of tokens, at least 1")]
        check_fields(self, "input specification", checks)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which `from_dict` reads back as equal."""
        return {
            "pixels": self.pixels and self.pixels.to_dict(),
            "regions": self.regions and asdict(self.regions),
            "max_tokens": self.max_tokens,
        }

    @classmethod
    def from_dict(cls, raw: Any) -> InputSpec:
        """Read what `to_dict` wrote.

        Raises:
            ModelError: a field is unknown, missing or of the wrong kind.
        """
        if isinstance(raw, dict):
            raw = dict(raw)
            if raw.get("pixels") is not None:
                raw["pixels"] = ImageSpec.from_dict(raw["pixels"])
            if raw.get("regions") is not None:
                raw["regions"] = from_fields(RegionSpec, raw["regions"], "region specification")
        return from_fields(cls, raw, "input specification")
