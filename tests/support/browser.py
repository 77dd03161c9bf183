"""Chromium without a window, without the network and without a voice of its own."""

from __future__ import annotations

import shutil

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
    *("--window-size=1400,900", "--virtual-time-budget=4000"),
)


def chromium() -> str:
    """Return the browser's path; skip the test where there is none."""
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium, which is not installed")
    return browser
