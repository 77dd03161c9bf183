"""Two runs side by side, and which of their differences the validation split can tell.

EleutherAI/lm-evaluation-harness#3835 and mjpost/sacrebleu#78 (a difference that only a paired test
sees, and one that none does).
"""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml

from vse_scale.errors import OutputError
from vse_scale.report.compare import compare_runs
from vse_scale.report.page import build_report
from vse_scale.retrieval.ranks import QueryRanks
from vse_scale.retrieval.recorded import RecordedRanks


@pytest.fixture
def second(run, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(run, folder)
    results = json.loads((folder / "results.json").read_text())
    results["i2t"]["r1"] += 2.5
    results["rsum"] += 2.5
    (folder / "results.json").write_text(json.dumps(results))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["optim"]["lr"] = 0.002
    config["model"]["text"]["path"] = "<bert>"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def words(html):
    text = re.sub(r"<(style|script)>.*?</\1>|<wbr>", "", html, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_figures_and_their_difference(run, second, tmp_path):
    html = compare_runs(run, second, tmp_path / "c.html").read_text()
    said = words(html)
    assert "R@1, image to text 61.2 63.8 +2.5" in said
    assert "R@5, image to text 83.5 83.5 +0.0" in said
    assert "RSUM 455.1 457.6 +2.5" in said
    assert html.count('class="better"') == 2
    assert "worse" not in html.split("</style>")[1]
    back = words(compare_runs(second, run, tmp_path / "c.html").read_text())
    assert "RSUM 457.6 455.1 −2.5" in back


def test_intervals_stand_by_the_figures_of_the_runs_that_recorded_them(run, second, tmp_path):
    results = json.loads((second / "results.json").read_text())
    ways = {key: {"r1": [60.04, 67.0], "r5": [80, 86]} for key in ("i2t", "t2i")}
    results["intervals"] = {**ways, "rsum": [450.0, 464.26]}
    (second / "results.json").write_text(json.dumps(results))
    said = words(compare_runs(run, second, tmp_path / "c.html").read_text())
    assert "R@1, image to text 61.2 63.8 60.0–67.0 +2.5" in said
    assert "RSUM 455.1 457.6 450.0–464.3 +2.5" in said
    assert "the interval of 95 % of 1,000 bootstrap draws of the images, each with its" in said
    of_one = words(build_report(second).read_text())
    assert "63.8 60.0–67.0" in of_one
    assert "That of RSUM: 450.0 to 464.3." in of_one
    assert "bootstrap" not in words(build_report(run).read_text())


def recorded(found, shards="a", step=29):
    """Ranks of 80 images with two captions each, of which ``found`` are found first."""
    first = torch.where(torch.arange(80) < found, 1, 20)
    ranks = QueryRanks(torch.arange(80), first, first.repeat_interleave(2))
    return RecordedRanks(step, "val", shards, ranks, np.repeat(np.arange(80), 2))


def test_a_difference_has_its_interval_where_both_runs_recorded_their_ranks(run, second, tmp_path):
    recorded(20).save(run / "ranks.json")
    recorded(60).save(second / "ranks.json")
    html = compare_runs(run, second, tmp_path / "c.html").read_text()
    # 40 of 80 images are gained: 50 %, with a deviation of 5.6.
    said = words(html)
    low, high = map(float, re.search(r"R@1, image [^%]*? \+2\.5 \+(\S+) to \+(\S+)", said).groups())
    assert (low, high) == (pytest.approx(39, abs=2), pytest.approx(61, abs=2))
    assert "its 95 % interval, the same draws for both runs" in said
    assert html.count('class="better"') == 2
    recorded(21).save(second / "ranks.json")
    html = compare_runs(run, second, tmp_path / "c.html").read_text()
    assert re.search(r"RSUM 455\.1 457\.6 \+2\.5 \+0\.0 to \+", words(html))
    assert 'class="better"' not in html  # one image more is no news


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        (None, "other has no ranks of its best validation. vse-scale report"),
        (recorded(60, step=9), "other has no ranks of its best validation. vse-scale report"),
        (recorded(60, shards="b"), "the runs were validated on other data"),
    ],
)
def test_without_ranks_of_the_same_queries_it_says_why(run, second, tmp_path, ranks, said):
    recorded(20).save(run / "ranks.json")
    if ranks is not None:
        ranks.save(second / "ranks.json")
    html = compare_runs(run, second, tmp_path / "c.html").read_text()
    assert said in words(html)
    assert html.count('class="better"') == 2  # as before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("i2t", [1]), ("i2t", "x"), ("t2i", [0] * 160), ("t2i", [2**70] * 160), ("step", 1.5),
        ("caption_to_image", [-1] * 160), ("caption_to_image", []), ("image_queries", None),
    ],
)  # fmt: skip
def test_damaged_ranks_are_one_line(run, second, tmp_path, key, value):
    for folder in (run, second):
        recorded(20).save(folder / "ranks.json")
    stored = json.loads((second / "ranks.json").read_text())
    (second / "ranks.json").write_text(json.dumps(stored | {key: value}))
    with pytest.raises(OutputError, match=r"ranks\.json: is damaged .*; remove it"):
        compare_runs(run, second, tmp_path / "c.html")
    (second / "ranks.json").unlink()
    compare_runs(run, second, tmp_path / "c.html")


def test_only_settings_that_differ(run, second, tmp_path):
    said = words(compare_runs(run, second, tmp_path / "c.html").read_text())
    assert "2 of 7 settings differ" in said
    assert "optim.lr 0.001 0.002" in said
    assert "model.text.path – &lt;bert&gt;" in said
    assert "optim.drop_epochs" not in said
    assert "The same for both." in said


def test_the_origin_of_each_run_stands_apart_from_their_machine(run, second, tmp_path):
    for folder, command in ((run, "vse-scale train a"), (second, "vse-scale train <b>")):
        system = json.loads((folder / "system.json").read_text())
        (folder / "system.json").write_text(json.dumps(system | {"origin": {"command": command}}))
    said = words(compare_runs(run, second, tmp_path / "c.html").read_text())
    assert "command vse-scale train a" in said
    assert "command vse-scale train &lt;b&gt;" in said
    assert "The same for both." in said
    assert "command vse-scale train a" in words(build_report(run).read_text())


def test_both_curves_in_one_chart(run, second, tmp_path):
    html = compare_runs(run, second, tmp_path / "c.html").read_text()
    learning = html.split('id="curves"')[1].split("</section>")[0]
    for style in ("image", "text"):
        assert learning.count(f'class="line {style}"') == 2
    assert "//" not in re.sub(r'"[^"]*"', "", learning)


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    shutil.copytree(run, tmp_path / "elsewhere" / "my-run")
    html = compare_runs(run, tmp_path / "elsewhere" / "my-run", tmp_path / "c.html").read_text()
    assert "elsewhere/my-run" in html


def test_a_run_that_has_not_begun(run, tmp_path):
    (tmp_path / "empty").mkdir()
    said = words(compare_runs(run, tmp_path / "empty", tmp_path / "c.html").read_text())
    assert "R@1, image to text 61.2 – –" in said
    assert "No step was recorded yet." in said


def test_no_such_run(run, tmp_path):
    with pytest.raises(OutputError, match="no such run folder"):
        compare_runs(run, tmp_path / "nowhere", tmp_path / "c.html")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "manifest.json").touch()
    with pytest.raises(OutputError, match="dataset: is no run, it has none of config"):
        compare_runs(run, tmp_path / "dataset", tmp_path / "c.html")
