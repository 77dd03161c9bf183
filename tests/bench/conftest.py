"""Made data, and a rehearsal's configuration on it, for tests of the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vse_scale.bench.defaults import default_config
from vse_scale.bench.job import Job
from vse_scale.bench.synthetic import make_dataset


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photo-like images to train on and 3 to validate on, 120 pixels wide."""
    return make_dataset(tmp_path_factory.mktemp("photos"), images=24, side=120)


@pytest.fixture(scope="session")
def job(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    scratch = tmp_path_factory.mktemp("scratch")
    overrides = [f"data.path={photos}", f"run.dir={scratch / 'run'}", "model.dropout=0.0"]
    config = default_config(overrides, gpu=False, small=True)
    return Job(config, repeats=1, small=True, device=torch.device("cpu"), scratch=scratch)
