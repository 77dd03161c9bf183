"""The comparison with the published code: what it needs of this project's side."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vse_scale.bench.published import our_figures

SCRIPT = Path(__file__).parents[2] / "launch" / "published.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("published_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_are_those_of_sorting_all_candidates() -> None:
    """As the published code ranks: by sorting the scores of every query."""
    rng = np.random.default_rng(5)
    images, captions = rng.standard_normal((30, 6)), rng.standard_normal((150, 6))
    captions += np.repeat(images, 5, axis=0)
    scores = images @ captions.T
    order = np.argsort(-scores, axis=1)
    first = [min(np.flatnonzero(row // 5 == image)) for image, row in enumerate(order)]
    other = np.argsort(-scores.T, axis=1)
    second = [np.flatnonzero(row == caption // 5)[0] for caption, row in enumerate(other)]
    expected = []
    for ranks in (np.array(first), np.array(second)):
        expected += [100 * np.mean(ranks < k) for k in (1, 5, 10)]
        expected += [np.floor(np.median(ranks)) + 1, ranks.mean() + 1]
    assert our_figures(images, captions) == pytest.approx(expected, rel=1e-12)


def test_losses_are_printed_side_by_side(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "published.loss").write_text("200.0\n100.0\n50.0\n")
    (tmp_path / "vse_scale.loss").write_text("200.0\n101.0\n")
    script.print_losses("no region dropped", tmp_path)
    title, *steps = capsys.readouterr().out.splitlines()
    assert title.startswith("losses, no region dropped")
    assert [line.split()[-1] for line in steps] == ["0.0e+00", "1.0e-02"]


def test_another_folder_is_refused_in_a_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["compare", str(tmp_path), str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--branch bigru" in said
