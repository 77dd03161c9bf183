"""The page of many runs: figures, settings that differ, and means over seeds."""

from __future__ import annotations

import json
import re
import shutil
import statistics

import pytest
import yaml

from vse_scale.commands.report import report
from vse_scale.errors import ConfigError, OutputError
from vse_scale.report.overview import runs_in, write_overview


def copied(run, folder, rsum, r1, **settings):
    shutil.copytree(run, folder)
    results = json.loads((folder / "results.json").read_text())
    results["rsum"], results["i2t"]["r1"] = rsum, r1
    (folder / "results.json").write_text(json.dumps(results))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config.setdefault("run", {})["dir"] = str(folder)
    for key, value in settings.items():
        section, name = key.split("__")
        config.setdefault(section, {})[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def runs(run, tmp_path):
    folder = tmp_path / "runs"
    for seed, (rsum, r1) in enumerate([(450.0, 60.0), (454.0, 62.5), (461.0, 63.0)]):
        copied(run, folder / f"base-{seed}", rsum, r1, run__seed=seed)
    copied(run, folder / "sub" / "<b>other", 470.0, 66.0, run__seed=0, optim__lr=0.5)
    (folder / "base-1" / "report.html").write_text("")
    (folder / "notes").mkdir()
    return folder


def rows(html, place):
    body = html.split(f'<section id="{place}">')[1].split("</section>")[0]
    found = []
    for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL):
        found.append([re.sub(r"<[^>]+>", "", cell) for cell in re.split(r"</t[hd]>", row)[:-1]])
    return found


def test_every_run_is_a_row_with_the_settings_that_differ(runs, tmp_path):
    html = write_overview(runs_in(runs), tmp_path / "out.html", "Runs").read_text()
    head, *body = rows(html, "runs")
    assert head[:4] == ["run", "RSUM", "R@1 image to text", "R@1 text to image"]
    assert set(head[7:]) == {"run.seed", "optim.lr"}
    assert [row[:3] for row in body] == [
        ["base-0", "450.0", "60.0"],
        ["base-1", "454.0", "62.5"],
        ["base-2", "461.0", "63.0"],
        ["&lt;b&gt;other", "470.0", "66.0"],
    ]
    assert "<b>other" not in html
    # A link to a run's report, from where the page lies.
    (address,) = re.findall(r'href="([^"#]+)"', html)
    assert (tmp_path / address).resolve() == (runs / "base-1" / "report.html").resolve()


def test_means_over_seeds_are_those_of_the_statistics_module(runs, tmp_path):
    html = write_overview(runs_in(runs), tmp_path / "out.html", "Runs").read_text()
    head, row = rows(html, "seeds")
    assert head[:3] == ["runs", "seeds", "RSUM"]
    assert row[:2] == ["base-0, base-1, base-2", "3"]
    for cell, values in ((row[2], (450.0, 454.0, 461.0)), (row[3], (60.0, 62.5, 63.0))):
        assert cell == f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def test_a_run_repeated_with_its_seed_is_no_further_sample(runs, tmp_path):
    for name in ("base-1", "base-2"):
        shutil.rmtree(runs / name)
    shutil.copytree(runs / "base-0", runs / "base-0-again")
    html = write_overview(runs_in(runs), tmp_path / "out.html", "Runs").read_text()
    assert "No two evaluated runs differ by run.seed alone." in html


def test_a_damaged_run_is_named_and_the_others_stay(runs, tmp_path):
    (runs / "base-2" / "results.json").write_text("{")
    html = write_overview(runs_in(runs), tmp_path / "out.html", "Runs").read_text()
    assert "base-2" in re.search(r"Left out: [^<]+", html)[0]
    assert len(rows(html, "runs")) == 4
    assert rows(html, "seeds")[1][1] == "2"


def test_the_command_takes_a_folder_of_runs_or_many(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report([runs])
    assert capsys.readouterr().out == f"report: {runs / 'runs.html'}\n"
    assert "<h1>Runs in runs</h1>" in (runs / "runs.html").read_text()
    report(run=[runs / f"base-{seed}" for seed in range(3)])
    assert "<h1>3 runs</h1>" in (tmp_path / "runs.html").read_text()
    report([runs / "base-0", runs / "base-1"])
    assert (tmp_path / "compare.html").is_file()
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError, match=r"holds no run, nor is it one .*give a run\.dir"):
        report([tmp_path / "empty"])
    with pytest.raises(ConfigError, match="give the folder of a run or of several"):
        report()
    with pytest.raises(ConfigError, match="one run"):
        report([runs], checkpoint="best")


def test_numbers_that_no_run_has_are_left_out(runs, tmp_path):
    """As a stranger may write them: JSON's 1e999 is infinite, and a seed may be a list."""
    results = runs / "base-0" / "results.json"
    results.write_text(re.sub(r'"rsum": [0-9.]+', '"rsum": 1e999', results.read_text()))
    config = runs / "base-1" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 1", "seed: [1]"))
    steps = runs / "sub" / "<b>other" / "metrics.jsonl"
    steps.write_text(steps.read_text().replace('"step": 1.0', '"step": 1e999'))
    html = write_overview(runs_in(runs), tmp_path / "out.html", "Runs").read_text()
    assert re.search(r"Left out: [^<]+other/metrics.jsonl:[^<]+", html)
    (_, row) = rows(html, "seeds")
    mean, deviation = statistics.mean((454.0, 461.0)), statistics.stdev((454.0, 461.0))
    assert row[:3] == ["base-0, base-1, base-2", "3", f"{mean:.1f} ± {deviation:.1f}"]
