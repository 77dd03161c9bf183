"""The comparison with the published code: what it needs of this project's side."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vse_scale.bench.published import our_figures
from vse_scale.bench.published_epochs import Row, append, table

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


@pytest.mark.parametrize(
    ("files", "more", "branch"),
    [
        ([], [], "bigru"),
        (["vse.py"], [], "bigru"),
        (["vse.py", "vocab.py"], ["--encoder", "bert"], "master"),
    ],
)
def test_a_checkout_of_another_branch_is_refused_in_a_line(
    files: list[str],
    more: list[str],
    branch: str,
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "lib").mkdir()
    for name in files:
        (tmp_path / "lib" / name).touch()
    assert script.main(["compare", str(tmp_path), str(tmp_path), *more]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"--branch {branch}" in said


def test_a_coarser_grid_holds_the_means_of_its_cells(script: ModuleType) -> None:
    cells = np.random.default_rng(6).standard_normal((3, 36, 5)).astype(np.float32)
    grids = cells.reshape(3, 3, 2, 3, 2, 5)  # three by three squares of two by two cells
    expected = grids.mean((2, 4)).reshape(3, 9, 5)
    np.testing.assert_allclose(script.coarser(cells, 3), expected, rtol=0, atol=1e-6)
    assert script.coarser(cells, 6) is cells


def test_rows_stand_below_one_header(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for epoch in (1, 2):
        append(file, Row("published", 0, epoch, 9.0, 5.36, 125.1234, 20.0))
    assert file.read_text().splitlines() == [
        "code,seed,epoch,i2t_r1,t2i_r1,rsum,cpu_seconds",
        "published,0,1,9.0,5.36,125.12,20.0",
        "published,0,2,9.0,5.36,125.12,20.0",
    ]


def test_a_table_holds_the_best_epoch_of_each_seed(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for code, seed, rsums in (
        ("published", 0, (100.0, 130.0, 120.0)),
        ("published", 1, (110.0, 90.0)),
        ("vse_scale", 0, (125.0,)),
    ):
        for epoch, rsum in enumerate(rsums):
            append(file, Row(code, seed, epoch + 1, rsum / 10, rsum / 20, rsum, 1.0))
    assert table(file)[2:] == [
        "| published | 2 | 12.0 | 6.0 | 120.0 ± 14.1 |",
        "| vse_scale | 1 | 12.5 | 6.2 | 125.0 |",
    ]
