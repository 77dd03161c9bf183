"""A run's configuration: the schema, and recipe files."""

from vse_scale.config.schema import (
    Config,
    DataConfig,
    EngineConfig,
    EvalConfig,
    ImageConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    Section,
    TelemetryConfig,
    TextConfig,
    TrainConfig,
)

__all__ = [
    "Config",
    "DataConfig",
    "EngineConfig",
    "EvalConfig",
    "ImageConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "RunConfig",
    "Section",
    "TelemetryConfig",
    "TextConfig",
    "TrainConfig",
]
