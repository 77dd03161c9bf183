"""Rows say what the rounds were; CSV, tables and pages say what the rows are."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vse_scale.bench import page, table
from vse_scale.bench.comparison import Result
from vse_scale.bench.job import Job
from vse_scale.bench.rows import Row, append, make_rows, read
from vse_scale.bench.stages import STAGES
from vse_scale.errors import UserError

DOCS = Path(__file__).parents[2] / "docs"

text = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=12)
number = st.floats(0.001, 1e9).map(lambda value: float(f"{value:.5g}"))
kinds = {"str": text, "int": st.integers(-1, 2**50), "float": number}
rows = st.builds(Row, **{field.name: kinds[str(field.type)] for field in fields(Row)})


def made(job: Job, unit: str, **values: list[float]) -> dict[str, Row]:
    results = {name: Result(rounds, 1 << 20, {}) for name, rounds in values.items()}
    found = make_rows(job, "step", "a case", results, peer="peer", unit=unit)
    return {row.implementation: row for row in found}


def test_median_deciles_and_the_quotient_within_rounds(job: Job) -> None:
    # A busy moment in the third round hits both; the medians' quotient would be 2.5.
    ours, peer = [20.0, 30.0, 4.0, 40.0, 25.0], [10.0, 10.0, 2.0, 10.0, 20.0]
    found = made(job, "pairs/s", ours=ours, peer=peer)
    assert found["ours"].median == 25.0
    assert (found["ours"].low, found["ours"].high) == pytest.approx(np.quantile(ours, (0.1, 0.9)))
    assert found["ours"].times == 2.0
    assert found["peer"].times == 1.0
    assert found["ours"].repeats == 5
    assert found["ours"].peer == found["peer"].implementation


def test_less_is_better_unless_it_is_a_rate(job: Job) -> None:
    assert made(job, "ms", ours=[2.0], peer=[6.0])["ours"].times == 3.0
    assert made(job, "bytes", ours=[6.0], peer=[2.0])["ours"].times == pytest.approx(1 / 3, 1e-4)
    assert math.isnan(made(job, "bytes", ours=[6.0], peer=[0.0])["ours"].times)


@given(st.lists(rows, min_size=1, max_size=4))
def test_a_csv_is_read_as_it_was_written(tmp_path_factory, many: list[Row]) -> None:
    path = tmp_path_factory.mktemp("csv") / "results.csv"
    append(path, many[:1])
    append(path, many[1:])
    assert read(path) == many


def test_a_csv_of_an_earlier_release_is_read_and_goes_on(tmp_path: Path, job: Job) -> None:
    path = tmp_path / "old.csv"
    header = (
        "stage,case,contender,peer,unit,median,low,high,times,peak_bytes,shares,repeats,device,"
        "threads,torch,triton,deepspeed,dali,opencv,commit"
    )
    path.write_text(
        f"{header}\nstep,a case,ours,peer,ms,2.0,1.0,3.0,1.5,7,,5,a CPU,2,a,b,c,d,e,f\n"
    )
    (old,) = read(path)
    assert (old.implementation, old.peer, old.median, old.commit) == ("ours", "peer", 2.0, "f")
    assert old.result_bytes == -1
    new = made(job, "ms", ours=[2.0], peer=[6.0])["ours"]
    append(path, [new])
    assert path.read_text().splitlines()[0] == header
    assert read(path) == [old, new]


def test_rows_are_not_appended_to_another_file(tmp_path: Path, job: Job) -> None:
    path = tmp_path / "other.csv"
    path.write_text("kernel,contender\n")
    with pytest.raises(UserError, match=r"other\.csv: its columns are not stage,case"):
        append(path, [made(job, "ms", ours=[2.0], peer=[6.0])["ours"]])
    assert path.read_text() == "kernel,contender\n"


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("kernel,implementation\ngpo,ours\n")
    with pytest.raises(UserError, match=r"other\.csv: its columns are not stage,case"):
        read(tmp_path / "other.csv")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "missing.csv")


def test_the_largest_share_binds(job: Job) -> None:
    results = {"peer": Result([1.0], -1, {"data": 0.7, "forward+backward": 0.3})}
    (row,) = make_rows(job, "train", "a case", results, peer="peer", unit="pairs/s")
    assert table.binding(row) == "data binds (data 70%, forward+backward 30%)"
    printed = table.text([row])
    assert "train, a case; peer: peer" in printed
    assert "data binds" in printed


def test_a_page_gets_the_newest_rows_of_each_stage(job: Job) -> None:
    old = made(job, "pairs/s", ours=[2.0], peer=[1.0])
    new = made(job, "pairs/s", ours=[7.0], peer=[1.0])
    elsewhere = [replace(row, device="another machine") for row in old.values()]
    before = (
        "a\n<!-- results: step -->\nstale\n<!-- end of results -->\nb\n"
        "<!-- results: train -->\n<!-- end of results -->\n"
        "<!-- results: plot -->\n<!-- end of results -->\n"
    )
    other = made(job, "ms", ours=[3.0], peer=[1.0])
    given = page.newest([*old.values(), *elsewhere, *other.values(), *new.values()])
    after = page.filled(before, given, "plot.svg")
    assert "| a case | ours | 7 | 7 to 7 | pairs/s | 7.00 | 1 |" in after
    assert "|  | peer (the peer) | 1 | 1 to 1 | pairs/s | 1.00 | 1 |" in after
    assert after.count("| ours | 2 |") == 1  # of the other machine
    assert "| ours | 3 | 3 to 3 | ms |" in after  # nor is what has another unit older
    assert "stale" not in after
    assert after.startswith("a\n")
    assert "Not measured yet." in after
    assert "(plot.svg)" in after
    assert page.filled(after, given, "plot.svg") == after


def test_the_committed_page_shows_the_committed_results() -> None:
    committed = (DOCS / "performance.md").read_text("utf-8")
    found = page.newest(read(DOCS / "performance" / "results.csv"))
    assert page.filled(committed, found, "performance/results.svg") == committed
    assert all(f"<!-- results: {stage} -->" in committed for stage in STAGES)


@pytest.mark.parametrize(("name", "begins"), [("plot.svg", b"<?xml"), ("plot.png", b"\x89PNG")])
def test_the_plot_is_of_the_kind_of_its_name(
    job: Job, tmp_path: Path, name: str, begins: bytes
) -> None:
    table.plot(made(job, "pairs/s", ours=[2.0], peer=[1.0]).values(), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)
