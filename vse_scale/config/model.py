"""The model section of a configuration: plain dataclasses, so that a model opens without pydantic.

The settings of the towers are theirs: `vse_scale.config.parts` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vse_scale.bounds import MAY_CHANGE, Count, Fraction
from vse_scale.config.parts import IMAGE_TOWERS, POOLINGS, TEXT_TOWERS, Choice, Named
from vse_scale.run.folder import model_folder

if TYPE_CHECKING:
    from pydantic_core import CoreSchema


@dataclass(frozen=True)
class _ModelFolder:
    """Metadata of a key that names a model's folder, or that of the run that made it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(_model_of, handler(source))


def _model_of(folder: str) -> str:
    try:
        own = model_folder(Path(folder))
    except OSError:  # such as a name that is too long: whoever opens it says so
        return folder
    return folder if own == Path(folder) else str(own)


IMAGE = Choice(IMAGE_TOWERS, "backbone", "resnet152")
TEXT = Choice(TEXT_TOWERS, "encoder", "huggingface")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The joint embedding.

    Attributes:
        embed_dim: D, the channels of an embedding.
        pool: of both towers: "gpo", "mean" (VSE++), "max", or "first", which takes a caption's
            [CLS].
        image: settings of the image tower, chosen by ``backbone``.
        text: settings of the text tower, chosen by ``encoder``.
        dropout: of the text encoder; None keeps the encoder's own.
        init_from: a model folder to start from, or the folder of the run that made it.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # pydantic looks for this very form

    embed_dim: Count = 1024
    pool: Annotated[str, Named(POOLINGS)] = "gpo"
    image: Annotated[Any, IMAGE] = field(default_factory=IMAGE.make_default)
    text: Annotated[Any, TEXT] = field(default_factory=TEXT.make_default)
    dropout: Fraction | None = None
    init_from: Annotated[Annotated[str, _ModelFolder()] | None, MAY_CHANGE] = None

    @classmethod
    def model_validate(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Check a nested mapping, as pydantic's sections do.

        Raises:
            ValidationError: a key or value is wrong.
        """
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python(raw)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> ModelConfig:
        """Return what `to_dict` wrote, in this release or an earlier one, without pydantic.

        Values are not checked one by one: the weights beside them must fit the network that they
        describe, to the last key.

        Raises:
            PartError: a tower is unknown.
            TypeError: a key is unknown.
        """
        parts = {"image": IMAGE.read(stored["image"]), "text": TEXT.read(stored["text"])}
        return cls(**{**stored, **parts})

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return asdict(self)


def model_keys() -> list[str]:
    """Return the dotted keys of the section, those of every built-in tower included."""
    keys = [one.name for one in fields(ModelConfig)]
    for section, choice in (("image", IMAGE), ("text", TEXT)):
        keys += [f"{section}.{key}" for key in choice.setting_names()]
    return keys
