"""A configuration for runs of a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def few_steps(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small grid CNN and BERT without dropout; 5 steps an epoch, the backbone frozen in the
    first, the hardest negatives from the second on."""
    path = tmp_path_factory.mktemp("few") / "few.yaml"
    path.write_text(
        f"""
data: {{path: {scenes}, global_batch: 32, mode: images, captions_per_image: 2, threads: 1}}
model:
  embed_dim: 24
  dropout: 0.0
  image: {{backbone: tiny, size: 32}}
  text:
    vocab_size: 120
    architecture:
      {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}}
objective: {{warmup_epochs: 1, ramp: false}}
optim: {{lr: 1.0e-3, text_scale: 1.0, backbone_scale: 1.0, drop_epochs: [6]}}
train: {{epochs: 10, frozen_backbone_epochs: 1, calibration_images: 32}}
eval: {{batch: 16}}
engine: {{timeout_seconds: 200}}
run: {{dir: unused}}
"""
    )
    return path
