"""The comparison of two versions' speed holds only where both write the same shards."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "shards/benchmarks/former_speed.py"


@pytest.fixture
def script(monkeypatch):
    specification = importlib.util.spec_from_file_location("former_speed", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "former_speed", module)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("equal", [True, False])
def test_versions_that_write_other_shards_have_no_ratio(equal, script, tmp_path, monkeypatch):
    def build(tree, case, rows, out, workers):
        out.mkdir()
        (out / "a.tar").write_bytes(b"shard" if equal else str(tree).encode())
        return 1.0, 1.0

    monkeypatch.setattr(script, "build", build)
    (case, *_) = script.cases(1, 1)
    trees = {"now": Path("a"), "former": Path("b")}
    if equal:
        assert len(script.pairs(case, Path("rows"), trees, 1, 1, tmp_path)) == 2
        return
    with pytest.raises(SystemExit, match="the versions write different shards"):
        script.pairs(case, Path("rows"), trees, 1, 1, tmp_path)
