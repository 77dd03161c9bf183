from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml

from vse_scale.errors import OutputError
from vse_scale.report.compare import compare_runs


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
    text = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.S)
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


def test_only_settings_that_differ(run, second, tmp_path):
    said = words(compare_runs(run, second, tmp_path / "c.html").read_text())
    assert "2 of 7 settings differ" in said
    assert "optim.lr 0.001 0.002" in said
    assert "model.text.path – &lt;bert&gt;" in said
    assert "optim.drop_epochs" not in said
    assert "The same for both." in said


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
