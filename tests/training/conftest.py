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
base: {Path(__file__).parents[1] / "small.yaml"}
data: {{path: {scenes}, global_batch: 32}}
optim: {{drop_epochs: [6]}}
train: {{epochs: 10}}
engine: {{timeout_seconds: 200}}
run: {{dir: unused}}
"""
    )
    return path
