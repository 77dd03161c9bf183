"""What every test stands on: the interpreter for kernels, one thread, the shared reference data."""

from __future__ import annotations

import os
from pathlib import Path

# Both must be set before the first import of torch or triton: the kernel language decides at
# import whether it interprets, and thread pools are sized once.
if not Path("/proc/driver/nvidia").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "DS_ACCELERATOR", "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published numbers and real photos, beside the repository."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("needs the reference data in ../shared, which is not there")
    return SHARED


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 80 drawn scenes to train on and 20 to validate on, five captions each."""
    from vse_shards.build import BuildOptions, build
    from vse_shards.demo import make_demo
    from vse_shards.sources.jsonl import JsonlSource

    folder = tmp_path_factory.mktemp("scenes")
    make_demo(folder / "source", images=100)
    source = JsonlSource(str(folder / "source" / "captions.jsonl"), str(folder / "source"))
    build(source, str(folder / "shards"), BuildOptions(shard_samples=32))
    return folder / "shards"


@pytest.fixture
def small_run(scenes: Path, tmp_path: Path) -> Path:
    """A configuration file of a model that trains in no time, on ``scenes``; 10 steps an epoch."""
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""
data: {{path: {scenes}, global_batch: 16, mode: images, captions_per_image: 2, threads: 1}}
model:
  embed_dim: 24
  dropout: 0.0
  image: {{backbone: tiny, size: 32}}
  text:
    vocab_size: 120
    architecture:
      {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}}
objective: {{warmup_epochs: 1, ramp: false}}
optim: {{lr: 1.0e-3, text_scale: 1.0, backbone_scale: 1.0, drop_epochs: [2]}}
train: {{epochs: 3, frozen_backbone_epochs: 1, calibration_images: 32}}
eval: {{batch: 16}}
engine: {{timeout_seconds: 120}}
run: {{dir: {tmp_path / "run"}}}
"""
    )
    return path
