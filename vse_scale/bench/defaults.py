"""Default models of the benchmark: a small one on a CPU, a usual one on a GPU."""

from __future__ import annotations

from typing import Any

from vse_scale.config import Config
from vse_scale.config.recipe import apply_override
from vse_shards.yaml_text import parse_yaml

# The published batch is 128; 120 holds whole images with five captions each on two ranks.
_CPU = """
data: {global_batch: 120, threads: 1}
model:
  embed_dim: 256
  image: {backbone: tiny, size: 96}
  text:
    vocab_size: 4000
    architecture:
      {hidden_size: 128, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 512}
"""
_GPU = """
data: {global_batch: 120, threads: 4}
model:
  image: {backbone: resnet50, size: 224}
"""
_SMALL = """
data: {global_batch: 20, threads: 1}
model:
  embed_dim: 32
  image: {backbone: tiny, size: 64}
  text:
    vocab_size: 200
    architecture:
      {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64}
"""


def default_config(overrides: list[str], *, gpu: bool, small: bool) -> Config:
    """Return the default model and batch, with ``section.key=value`` overrides.

    Raises:
        ConfigError: a key or value is wrong.
    """
    raw: dict[str, Any] = parse_yaml(_SMALL if small else _GPU if gpu else _CPU)
    for override in overrides:
        apply_override(raw, override)
    return Config.parse(raw)
