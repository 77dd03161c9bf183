"""The parts that a configuration chooses by a key, listed once, and how their settings are read.

A part is a class with its own ``Settings``, a frozen dataclass whose field of the deciding key
(``encoder`` of a text tower) holds the part's name. Adding one takes its file and a line here; one
from outside is an entry point of the group, or ``module:Class`` as the key's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from vse_shards.errors import PartError
from vse_shards.parts import Registry

if TYPE_CHECKING:
    from pydantic import ValidationInfo
    from pydantic_core import CoreSchema

_TOWERS = "vse_scale.model.towers"
_POOLING = "vse_scale.model.pooling"

# "tiny" is for demonstrations and tests; "resnet152_caffe" has the detector's strides, see
# launch/recipes/coco_imagenet_bert.yaml; "huggingface" is a vision model of transformers;
# "regions" takes a detector's features in place of pixels; "timm/NAME" stands for timm's models.
IMAGE_TOWERS: Registry[Any] = Registry(
    "image tower",
    "vse_scale.image_towers",
    {
        "tiny": f"{_TOWERS}.resnet:ResNetTower",
        "resnet50": f"{_TOWERS}.resnet:ResNetTower",
        "resnet101": f"{_TOWERS}.resnet:ResNetTower",
        "resnet152": f"{_TOWERS}.resnet:ResNetTower",
        "resnet152_caffe": f"{_TOWERS}.resnet:ResNetTower",
        "resnext101_32x8d": f"{_TOWERS}.resnet:ResNetTower",
        "detector": f"{_TOWERS}.resnet:ResNetTower",
        "efficientnet-lite0": f"{_TOWERS}.efficientnet:EfficientNetLiteTower",
        "efficientnet-lite1": f"{_TOWERS}.efficientnet:EfficientNetLiteTower",
        "efficientnet-lite2": f"{_TOWERS}.efficientnet:EfficientNetLiteTower",
        "huggingface": f"{_TOWERS}.vision:VisionTower",
        "regions": f"{_TOWERS}.regions:RegionTower",
        "timm/NAME": f"{_TOWERS}.timm:TimmTower",
    },
)

TEXT_TOWERS: Registry[Any] = Registry(
    "text encoder",
    "vse_scale.text_towers",
    {
        "huggingface": f"{_TOWERS}.transformer:TransformerTower",
        "bigru": f"{_TOWERS}.bigru:BiGRUTower",
    },
)

POOLINGS: Registry[Any] = Registry(
    "pooling",
    "vse_scale.poolings",
    {
        "gpo": f"{_POOLING}.gpo:GPO",
        "mean": f"{_POOLING}.mean:MeanPool",
        "max": f"{_POOLING}.max:MaxPool",
        "first": f"{_POOLING}.first:FirstPool",
    },
)

_OBJECTIVE = "vse_scale.objective"

OBJECTIVES: Registry[Any] = Registry(
    "objective",
    "vse_scale.objectives",
    {
        "hinge": f"{_OBJECTIVE}.hinge:Hinge",
        "infonce": f"{_OBJECTIVE}.infonce:InfoNce",
        "sigmoid": f"{_OBJECTIVE}.sigmoid:Sigmoid",
        "hinge+infonce": f"{_OBJECTIVE}.weighted:Weighted",
    },
)


@dataclass(frozen=True)
class Choice:
    """Metadata of a section whose class depends on one of its own keys.

    pydantic calls `__get_pydantic_core_schema__` where a configuration is checked; opening a model
    calls `read`, which needs no pydantic.

    Attributes:
        registry: the parts to choose from.
        key: the section's key that names the part.
        default: the part where the key is absent.
    """

    registry: Registry[Any]
    key: str
    default: str

    def make_default(self) -> Any:
        """Return the settings of the default part."""
        return self.registry.find(self.default).Settings(**{self.key: self.default})

    def setting_names(self) -> list[str]:
        """Return the keys of all built-in parts' settings."""
        parts = (self.registry.find(name).Settings for name in self.registry.names())
        return list(dict.fromkeys(field.name for settings in parts for field in fields(settings)))

    def read(self, stored: Mapping[str, Any]) -> Any:
        """Return the settings that a file of ours holds, without checking the values' bounds.

        Earlier releases kept the keys of all parts in every section; those of other parts are left
        out.

        Raises:
            PartError: there is no such part.
            TypeError: a key is unknown.
        """
        settings = self.settings_of(stored.get(self.key, self.default))
        return settings(**self._own(settings, stored, lenient=True))

    def recorded(self, stored: object) -> Any | None:
        """Return the settings in a run's configuration as it was written down.

        None where this release does not know them: they are another release's, their package is
        missing, or they are no settings at all, as of a damaged file.
        """
        section = stored or {}
        if not isinstance(section, Mapping):
            return None
        try:
            return self.read(section)
        except (PartError, TypeError, ValueError):
            return None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """Validate a section as the part's settings, whichever that is."""
        from pydantic_core import core_schema

        return core_schema.with_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(asdict)
        )

    def _validate(self, raw: Any, info: ValidationInfo) -> Any:
        from pydantic import TypeAdapter

        if is_dataclass(raw) and not isinstance(raw, type):
            return raw
        if not isinstance(raw, Mapping):
            raise ValueError(f"give a section of keys, {self.key} among them")
        name = raw.get(self.key, self.default)
        try:
            settings = self.settings_of(name)
        except PartError as error:
            raise _at(self.key, name, str(error)) from error
        lenient = bool(info.context and info.context.get("stored"))
        own = self._own(settings, raw, lenient=lenient)
        for key in own.keys() - _defaults(settings).keys():
            # A class from outside may not forbid them itself.
            raise _at(key, own[key], "", kind="unexpected_keyword_argument")
        try:
            return TypeAdapter(settings).validate_python(own)
        except PartError as error:  # what the part stands on is not there
            raise _at(self.key, name, str(error)) from error

    def settings_of(self, name: Any) -> Any:
        """Return the class of a part's settings.

        Raises:
            PartError: there is no such part, or it has none.
        """
        if not isinstance(name, str):
            raise PartError(f"{self.registry.kind} is {name!r:.80}; give a name")
        part = self.registry.find(name)
        settings = getattr(part, "Settings", None)
        if not is_dataclass(settings) or self.key not in _defaults(settings):
            raise PartError(
                f"{self.registry.kind} {name!r:.80} has no Settings that hold its name; give its "
                f"class a frozen dataclass Settings with a field `{self.key}: str`"
            )
        return settings

    def _own(self, settings: Any, raw: Mapping[str, Any], *, lenient: bool) -> dict[str, Any]:
        """Return ``raw`` without the keys of other parts that say nothing.

        Raises:
            ValidationError: a key belongs to another part and has a value of its own; where
                ``lenient``, it is left out.
        """
        raw = {self.key: self.default, **raw}
        own = {key: value for key, value in raw.items() if key in _defaults(settings)}
        foreign = {key: value for key, value in raw.items() if key not in own}
        if not foreign:
            return own
        for other in self.registry.names():
            # Looked for where something is wrong alone: it imports every part.
            defaults = _defaults(self.registry.find(other).Settings)
            for key in foreign.keys() & defaults.keys():
                value = foreign.pop(key)
                empty = value is None or value == {} or value == defaults[key]
                if not lenient and not empty:
                    chosen = raw[self.key]
                    within = [
                        f"{SECTION}.{name}.{key}"
                        for name, section in _defaults(settings).items()
                        if is_dataclass(section) and key in _defaults(type(section))
                    ]
                    remedy = " or ".join(within) or f"{SECTION}.{self.key}={other}"
                    raise _at(
                        key,
                        value,
                        f"is a setting of {self.key}={other}, and {self.key} is {chosen}; take it "
                        f"out (null does, over a base), or set {remedy}",
                    )
        return own | foreign  # what no part knows is refused by name


OBJECTIVE = Choice(OBJECTIVES, "kind", "hinge")


@dataclass(frozen=True)
class Named:
    """Metadata of a key that names a part without settings of its own."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """Accept the names of parts."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str) -> str:
        try:
            self.registry.find(name)
        except PartError as error:
            raise ValueError(str(error)) from error
        return name


# In a part's message: the section's dotted name, which the part does not know.
SECTION = "<section>"


def complaint(found: Mapping[str, Any], dotted: str, *, section: bool = False) -> str:
    """Return one of pydantic's complaints in the words of the user's own keys.

    Args:
        found: one of ``ValidationError.errors``.
        dotted: the name of the key, or of the section.
        section: whether it is a section's.
    """
    message = found["msg"].removeprefix("Value error, ")
    message = message.replace(SECTION, dotted.rpartition(".")[0])
    # Whole sections are not repeated; a rule over several of its keys names them itself.
    if found["type"] == "part" and isinstance(found["input"], dict):
        return f"{dotted} {message}"
    if not dotted or section:
        return str(message)
    value = found["input"]
    unquoted = found["type"] == "string_type" and not isinstance(value, list | None)
    remedy = f"; put it in quotes, as in '{dotted}=\"...\"'" if unquoted else ""
    told = str(value) if isinstance(value, date) else f"{value!r:.80}"
    return f"{dotted} is {told}: {message[0].lower()}{message[1:]}{remedy}"


def _defaults(settings: Any) -> dict[str, Any]:
    """Return the default of every field of a settings class."""
    return {
        field.name: field.default_factory() if field.default_factory is not MISSING
        else field.default
        for field in fields(settings)
    }  # fmt: skip


def _at(key: str, value: Any, message: str, kind: str = "") -> Exception:
    """Return pydantic's error that ``key`` is wrong, which keeps the path that leads to it.

    It is of pydantic's own ``kind``, or else says ``message``.
    """
    from pydantic_core import PydanticCustomError, ValidationError

    # The message is a template to pydantic, and holds braces of the user's.
    error: Any = kind or PydanticCustomError("part", "{message}", {"message": message})
    return ValidationError.from_exception_data(
        "part", [{"type": error, "loc": (key,), "input": value}]
    )
