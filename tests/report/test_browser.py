"""The pages in a real browser: nothing is broken, nothing overflows, the filters filter."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from vse_scale.report.compare import compare_runs

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND"),
    *("--window-size=1400,900", "--virtual-time-budget=4000"),
)


@pytest.fixture
def measure(tmp_path):
    """Open a page in a frame of some width, run a script with ``page`` in it, return its value.

    A headless window has a least width, so the page is measured in a frame of the right width.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium, which is not installed")

    def run(report: Path, script: str, width: int = 1200):
        frame = tmp_path / "frame.html"
        frame.write_text(
            f'<iframe src="{report.as_uri()}" style="width:{width}px;height:800px;border:0">'
            "</iframe><pre></pre><script>onload = () => { const page = frames[0].document; "
            f"const value = (() => {{ {script} }})(); "
            "document.querySelector('pre').textContent = JSON.stringify(value) }</script>"
        )
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        shown = subprocess.run(
            [browser, *FLAGS, profile, "--dump-dom", frame.as_uri()],
            capture_output=True,
            text=True,
            timeout=300,
        )
        return json.loads(unescape(re.search(r"<pre>(.+)</pre>", shown.stdout, re.S)[1]))

    return run


LAYOUT = """return {
  scroll: page.documentElement.scrollWidth,
  broken: [...page.images].filter(i => !i.hidden && i.complete && !i.naturalWidth).length,
  plots: [...page.querySelectorAll('.plot')].map(p => p.clientWidth),
  headings: [...page.querySelectorAll('h2')].filter(h => h.clientHeight).length,
}"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 390, 1200])
def test_a_report_fits_its_screen(full_report, measure, width):
    found = measure(full_report, LAYOUT, width)
    assert found["scroll"] <= width
    assert found["broken"] == 0
    assert len(found["plots"]) == 10
    assert min(found["plots"]) > 200
    assert found["headings"] == 9


FILTER = """const box = page.getElementById('failures-box');
const form = box.querySelector('form');
const shown = () => [...box.querySelectorAll('article')].filter(a => a.offsetHeight);
const state = () => ({
  ways: [...new Set(shown().map(a => a.classList.contains('i2t') ? 'i2t' : 't2i'))].sort(),
  ranks: shown().map(a => Number(a.dataset.rank)),
  words: shown().map(a => a.textContent + [...a.querySelectorAll('img')].map(i => i.alt).join(' ')),
  said: box.querySelector('output').textContent,
  more: box.querySelector('button').offsetHeight > 0,
});
const set = (name, value) => {
  form.elements[name].value = value;
  form.dispatchEvent(new Event('input', {bubbles: true}));
};
const states = [state()];
box.querySelector('button').click(); states.push(state());
set('way', 't2i'); states.push(state());
set('rank', '11'); states.push(state());
set('way', ''); set('rank', '2'); set('words', 'IMAGE 7>'); states.push(state());
set('words', 'no such words'); states.push(state());
return states;"""


@pytest.mark.slow
def test_failures_can_be_browsed_and_filtered(full_report, measure):
    first, more, captions, later, words, none = measure(full_report, FILTER)
    assert (len(first["ranks"]), first["said"], first["more"]) == (12, "12 of 30 shown", True)
    assert (len(more["ranks"]), more["more"]) == (24, True)
    assert captions["ways"] == ["t2i"]
    assert captions["said"] == "12 of 15 shown"
    assert later["ranks"]
    assert all(rank >= 11 for rank in later["ranks"])
    assert 0 < len(words["words"]) < 12
    assert all("7>" in text for text in words["words"])
    assert (none["ranks"], none["said"], none["more"]) == ([], "0 of 0 shown", False)


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1200])
def test_two_runs_fit_the_screen(run, measure, tmp_path, width):
    shutil.copytree(run, tmp_path / "another-run-with-a-much-longer-name")
    page = compare_runs(
        run, tmp_path / "another-run-with-a-much-longer-name", tmp_path / "compare.html"
    )
    found = measure(page, LAYOUT, width)
    assert found["scroll"] <= width
    assert len(found["plots"]) == 4
    assert min(found["plots"]) > 200
    assert found["headings"] == 6
