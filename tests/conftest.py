"""What every test stands on: the interpreter for kernels, one thread, the shared reference data."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
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
SMALL = Path(__file__).with_name("small.yaml")


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """A command that a test runs in this process sets up the log, which the next test reads."""
    log = logging.getLogger("vse_scale")
    before = (log.handlers[:], log.propagate, log.level)
    yield
    log.handlers[:], log.propagate = before[0], before[1]
    log.setLevel(before[2])


@pytest.fixture(scope="session", autouse=True)
def nothing_left_here() -> Iterator[None]:
    """What a test leaves in the current folder is read by others, by its name."""
    before = set(os.listdir())
    yield
    others = {".hypothesis", ".pytest_cache", ".mypy_cache", ".ruff_cache", "runs", "data", "site"}
    left = set(os.listdir()) - before - others
    assert not left, f"tests left {sorted(left)} in {Path.cwd()}"


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
base: {SMALL}
data: {{path: {scenes}}}
optim: {{drop_epochs: [2]}}
train: {{epochs: 3}}
engine: {{timeout_seconds: 120}}
run: {{dir: {tmp_path / "run"}}}
"""
    )
    return path


@pytest.fixture
def small_config():
    """A model of the same size with two layers of text."""
    from vse_scale.config import ModelConfig

    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 20}
    return ModelConfig.model_validate(
        {
            "embed_dim": 24,
            "dropout": 0.0,
            "image": {"backbone": "tiny", "size": 32},
            "text": {"architecture": text},
        }
    )


@pytest.fixture
def small_model(small_config):
    """Untrained, with 50 token ids."""
    import torch

    from vse_scale.model.vse import VSEModel

    torch.manual_seed(0)
    return VSEModel(small_config, vocab_size=50, pad_id=0)
