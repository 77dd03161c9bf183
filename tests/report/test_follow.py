"""A run followed in the browser while it goes on."""

from __future__ import annotations

import json
import re

import pytest
import typer

from vse_scale.commands.report import report
from vse_scale.errors import ConfigError, OutputError
from vse_scale.report.follow import EVERY, follow_run

RELOAD = f'<meta http-equiv="refresh" content="{EVERY}">'


def steps_on(page):
    return re.search(r"<b>([\d,]+)</b><span>steps", page.read_text())[1]


def test_the_page_follows_the_run_and_stops_reloading_at_its_end(run):
    page, log = run / "report.html", run / "metrics.jsonl"
    seen, told = [], []
    last = json.loads(log.read_text().splitlines()[-1])

    def wait(seconds):
        assert seconds >= EVERY
        seen.append((steps_on(page), RELOAD in page.read_text(), page.stat().st_mtime_ns))
        if len(seen) == 2:
            line = json.dumps(last | {"step": last["step"] + 1})
            with log.open("a") as file:
                file.write(line + "\n" + line[:20])  # the last one is still being written
        if len(seen) == 3:
            (run / "done").touch()

    follow_run(run, wait=wait, told=told.append)
    assert [(steps, reloads) for steps, reloads, _ in seen] == [("30", True)] * 2 + [("31", True)]
    assert seen[0][2] == seen[1][2]  # nothing new, nothing written
    assert steps_on(page) == "31"
    assert RELOAD not in page.read_text()
    assert told == [page]


def test_ctrl_c_ends_it_quietly_and_what_cannot_be_followed_is_one_line(run, tmp_path, monkeypatch):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        follow_run, "__kwdefaults__", {**follow_run.__kwdefaults__, "wait": stopped}
    )
    with pytest.raises(typer.Exit):
        report([run], follow=True)
    assert RELOAD in (run / "report.html").read_text()
    with pytest.raises(ConfigError, match="--follow is for one run"):
        report(run=[run, run], follow=True)
    with pytest.raises(OutputError, match="no such run folder"):
        report([tmp_path / "nowhere"], follow=True)
