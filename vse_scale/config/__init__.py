"""A run's configuration: the schema, recipe files, and the parts that it chooses."""

from typing import TYPE_CHECKING, Any

from vse_scale.config.model import ModelConfig

if TYPE_CHECKING:
    from vse_scale.config.schema import (
        Config,
        DataConfig,
        EngineConfig,
        EvalConfig,
        OptimConfig,
        RunConfig,
        Section,
        TelemetryConfig,
        TrainConfig,
    )

__all__ = [
    "Config",
    "DataConfig",
    "EngineConfig",
    "EvalConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "Section",
    "TelemetryConfig",
    "TrainConfig",
]


def __getattr__(name: str) -> Any:
    # On demand: a model opens with its own section alone, where pydantic is not installed.
    if name in __all__:
        from vse_scale.config import schema

        return getattr(schema, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
