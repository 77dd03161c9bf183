"""axe on a report, a comparison, a page of runs and a preview: both themes, two widths."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from axe import findings

from vse_scale.report.compare import compare_runs
from vse_scale.report.overview import write_overview
from vse_shards.preview import write_preview


@pytest.mark.slow
def test_axe_finds_nothing(full_report: Path, run: Path, scenes: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    pages = [full_report, compare_runs(run, other, tmp_path / "compare.html")]
    pages.append(write_overview([run, other], tmp_path / "runs.html", "Runs"))
    pages.append(tmp_path / "preview.html")
    write_preview(scenes, pages[-1], samples=4)
    assert findings(tmp_path / "profile", [page.as_uri() for page in pages]) == []
