"""axe, the checker of accessibility, in Chromium: both themes, a phone's and a desk's width."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browser import FLAGS, chromium

WIDTHS, THEMES = (390, 1280), ("light", "dark")
_SCROLL = "document.documentElement.scrollWidth"
_RUN = """axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.map(
  rule => rule.id + ': ' + rule.nodes.slice(0, 3).map(node => node.target.join(' ')).join(', ')))"""


class Tab:
    """A tab of a Chromium that is steered by the protocol of its developer tools, over two pipes.

    Args:
        reading: a descriptor of what the browser says.
        writing: a descriptor of what it is told.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._from, self._to = os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)
        self._numbers, self._rest = itertools.count(1), b""
        self._session: str | None = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self("Page.enable")
        self("Page.setBypassCSP", enabled=True)  # axe is no script of the page's

    def __call__(self, method: str, **parameters: Any) -> Any:
        """Call a method, and return its result."""
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            asked["sessionId"] = self._session
        self._to.write(json.dumps(asked).encode() + b"\0")
        answer = self._wait_for("id", number)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def open(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        self("Page.navigate", url=url)
        self._wait_for("method", "Page.loadEventFired")

    def value(self, script: str) -> Any:
        """Run a script in the page, and return its value, once a promise has one."""
        ran = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in ran, ran["exceptionDetails"]
        return ran["result"].get("value")

    def _wait_for(self, key: str, value: object) -> Any:
        while True:
            while b"\0" not in self._rest:
                read = self._from.read(1 << 16)
                assert read, "Chromium has ended"
                self._rest += read
            message, _, self._rest = self._rest.partition(b"\0")
            told = json.loads(message)
            if told.get(key) == value:
                return told


@contextlib.contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """Start a browser with an empty ``profile``; skip the test where there is none."""
    flags = [flag for flag in FLAGS if "virtual-time" not in flag]
    # A mouse, which Chromium lacks without a screen, and by which pages tell a desk from a phone.
    flags.append("--blink-settings=primaryHoverType=2,availableHoverTypes=2")
    said, heard = os.pipe(), os.pipe()
    # Its descriptors are 3 and 4, always.
    start = ["bash", "-c", f'exec "$@" 3<&{heard[0]} 4>&{said[1]}', "bash", chromium(), *flags]
    browser = subprocess.Popen(
        [*start, f"--user-data-dir={profile}", "--remote-debugging-pipe"],
        pass_fds=(heard[0], said[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(heard[0])
    os.close(said[1])
    try:
        yield Tab(said[0], heard[1])
    finally:
        browser.kill()
        browser.wait()


def findings(profile: Path, urls: Sequence[str], ready: str = "") -> list[str]:
    """Return a line for each rule of axe that a page breaks, and for each that is too wide.

    Args:
        profile: an empty folder for the browser.
        urls: of the pages.
        ready: a script that is run first, whose promise is waited for.
    """
    found = find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("needs axe-core-python, which is not installed")
    axe = Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    lines = []
    with tab(profile) as page:
        for theme, width, url in itertools.product(THEMES, WIDTHS, urls):
            media = [{"name": "prefers-color-scheme", "value": theme}]
            page("Emulation.setEmulatedMedia", features=media)
            scroll = _open(page, url, width)
            page.value(ready)
            page.value(f"{axe}; 0")
            broken = [*page.value(_RUN), *([f"is {scroll} px wide"] if scroll > width else [])]
            lines += [f"{url} ({theme}, {width} px): {one}" for one in broken]
    return lines


def too_wide(profile: Path, urls: Sequence[str]) -> list[str]:
    """Return the pages that are wider than the screen of a phone, of ``urls``."""
    with tab(profile) as page:
        return [url for url in urls if _open(page, url, WIDTHS[0]) > WIDTHS[0]]


def _open(page: Tab, url: str, width: int) -> int:
    """Open a page at some width, and return how wide what it shows is."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page("Emulation.setDeviceMetricsOverride", **size)
    page.open(url)
    return int(page.value(_SCROLL))
