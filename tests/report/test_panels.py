"""Panels are found where they lie, and each renders for runs that lack what it shows."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import pytest

from vse_scale.html.chart import linear_axis, log_axis, number
from vse_scale.report import build_report, panel, panels
from vse_scale.report.compare import compare_runs
from vse_scale.report.data import Column, ReportData
from vse_scale.retrieval.metrics import METRICS
from vse_scale.run.folder import RunRecords

ADDED = '''
from vse_scale.report.panel import Panel, Section

class Steps(Panel):
    """The number of steps."""

    section = Section("steps", "Steps & more", {order})
    style = ".steps {{ color: teal; }}"
    script = "console.log('steps');"

    def render(self, data):
        return f"<p>{{len(data.run.steps)}} steps were counted.</p>"
{compare}
PANEL = Steps()
'''
COMPARE = """
    def compare(self, columns):
        return "".join(f"<p>{c.name}: {len(c.run.steps)} steps.</p>" for c in columns)
"""


@pytest.fixture
def add_panel(tmp_path, monkeypatch):
    """Write a module to a folder that the package of panels also looks into."""
    folder = tmp_path / "more-panels"
    folder.mkdir()
    monkeypatch.setattr(panels, "__path__", [*panels.__path__, str(folder)])

    def add(compare="", order=15):
        (folder / "steps.py").write_text(ADDED.format(compare=compare, order=order))
        monkeypatch.delitem(sys.modules, f"{panels.__name__}.steps", raising=False)

    yield add
    sys.modules.pop(f"{panels.__name__}.steps", None)


def test_a_panel_is_one_file(run, tmp_path, add_panel):
    shutil.copytree(run, tmp_path / "other")
    before = build_report(run, tmp_path / "before.html").read_text()
    add_panel(COMPARE)
    html = build_report(run, tmp_path / "r.html").read_text()
    section = '<section id="steps"><h2>Steps &amp; more</h2><p>30 steps were counted.</p></section>'
    assert section in html
    assert html.index('id="recalls"') < html.index('id="steps"') < html.index('id="curves"')
    assert ".steps { color: teal; }" in html.split("</style>")[0]
    assert "console.log('steps');" in html.rsplit("<script>", 1)[1]
    # The rest of the page is as it was.
    link = '<li><a href="#steps">Steps &amp; more</a></li>'
    added = (section + "\n", link, ".steps { color: teal; }", "console.log('steps');")
    for part in added:
        html = html.replace(part, "")
    assert html == before
    side_by_side = compare_runs(run, tmp_path / "other", tmp_path / "c.html").read_text()
    assert "<p>my-run: 30 steps.</p><p>other: 30 steps.</p>" in side_by_side


def test_a_panel_without_a_side_by_side_form_is_left_out_of_a_comparison(run, tmp_path, add_panel):
    shutil.copytree(run, tmp_path / "other")
    add_panel(order=95)
    html = build_report(run, tmp_path / "r.html").read_text()
    assert html.index('id="settings"') < html.index('id="steps"')
    side_by_side = compare_runs(run, tmp_path / "other", tmp_path / "c.html").read_text()
    assert 'id="steps"' not in side_by_side
    assert 'id="examples"' not in side_by_side


@pytest.fixture(params=["empty", "no validation", "old", "whole"])
def some_run(request, run, tmp_path):
    """A run that has not begun, one without a validation, and one of an older release."""
    folder = run
    if request.param == "empty":
        folder = tmp_path / "empty"
        folder.mkdir()
    elif request.param == "no validation":
        (run / "evaluations.jsonl").unlink()
        (run / "results.json").unlink()
    elif request.param == "old":
        for name in ("evaluations.jsonl", "results.json"):
            lines = []
            for line in (run / name).read_text().splitlines():
                record = json.loads(line)
                for direction in ("i2t", "t2i"):
                    del record[direction]["r10"], record[direction]["mean_rank"]
                del record["pooling"], record["similarities"]
                lines.append(json.dumps(record))
            (run / name).write_text("\n".join(lines) + "\n")
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for step in steps:
            del step["positive_similarity"], step["hardest_similarity"]
            del step["seconds"]["communication"]
        (run / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
        (run / "system.json").unlink()
    return folder


NAMES = [type(each).__name__ for each in panel.discover()]


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_renders_for_every_run(name, some_run):
    (shown,) = (each for each in panel.discover() if type(each).__name__ == name)
    records = RunRecords.load(some_run)
    html = shown.render(ReportData(records))
    assert "None<" not in html
    assert "nan" not in html.lower()
    if isinstance(shown, panel.Comparable):
        html = shown.compare([Column(records, "a", "image"), Column(records, "b", "text")])
        assert html
        assert "None<" not in html


def test_sections_say_what_is_absent(some_run, tmp_path):
    html = build_report(some_run, tmp_path / "r.html").read_text()
    sections = html.split("<main>")[1].split("</main>")[0].split("<section id=")[1:]
    bodies = {part.split('"')[1]: part.split("</h2>", 1) for part in sections if "<h2>" in part}
    assert list(bodies) == [
        *("recalls", "curves", "separation", "examples", "failures"),
        *("pooling", "time", "system", "settings"),
    ]
    assert all(len(body) > len("</section>") for _, body in bodies.values())


def test_an_old_run_shows_dashes(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    del results["i2t"]["r10"]
    (run / "results.json").write_text(json.dumps(results))
    html = build_report(run, tmp_path / "r.html").read_text()
    row = html.split('<tr class="i2t">')[1].split("</tr>")[0]
    assert "<td>–</td>" in row
    assert "83.5" in row


def test_a_new_metric_shows_everywhere(run, tmp_path, monkeypatch):
    metric = replace(METRICS["r10"], name="r20", label="R@20", k=20)
    monkeypatch.setitem(METRICS, "r20", metric)
    shutil.copytree(run, tmp_path / "old")
    for name in ("evaluations.jsonl", "results.json"):
        records = [json.loads(line) for line in (run / name).read_text().splitlines()]
        for record in records:
            record["i2t"]["r20"], record["t2i"]["r20"] = 97.5, 96.25
        (run / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    html = build_report(run, tmp_path / "r.html").read_text()
    assert "--share:97.50%" in html
    assert "among the first 1, 5, 10 or 20." in html
    assert '<th scope="col">t→i R@20</th>' in html
    assert html.count("</i>R@20</li>") == 2
    html = compare_runs(run, tmp_path / "old", tmp_path / "c.html").read_text()
    assert "R@20, image to text</th><td>97.5</td><td>–</td><td>–</td>" in html


def test_an_unknown_objective_leaves_its_phases_unnamed(run, tmp_path):
    with (run / "config.yaml").open("a") as file:
        file.write("objective: {kind: of another release}\n")
    html = build_report(run, tmp_path / "r.html").read_text()
    assert "Loss by step" in html
    assert '<span class="axis-label">over 64 pairs, log scale</span>' in html
    assert 'class="band"' not in html


def test_towers_whose_settings_are_of_other_kinds_are_named_by_their_part(run, tmp_path):
    """Of files that a fuzzer damaged: the tower could not be told in words."""
    image = "{backbone: huggingface, size: 64, architecture: {}}"
    text = "{encoder: transformer, architecture: null}"
    with (run / "config.yaml").open("a") as file:
        file.write(f"model: {{image: {image}, text: {text}}}\n")
    html = build_report(run, tmp_path / "r.html").read_text()
    assert "huggingface" in html
    assert "transformer" in html


def test_ticks_are_short_enough_for_the_margin() -> None:
    """A phone's screen cut off the first figures of 1,000,000 (`margin-left` of `.plot`)."""
    for power in range(-3, 12):
        for axis in (linear_axis("", 0, 1.3 * 10**power), log_axis("", 0.1, 10.0 ** max(power, 0))):
            assert all(len(text) <= len("75,000") for _, text in axis.ticks), axis.ticks
    said = [number(value) for value in (0, 0.25, 1500, 250_000, -2.5e6)]
    assert said == ["0", "0.25", "1,500", "250k", "-2.5M"]
