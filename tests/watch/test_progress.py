"""Progress: a screen is never silent for long, on a terminal or off it."""

from __future__ import annotations

import logging
import time

import pytest

from vse_scale import console as progress
from vse_scale.console import Progress, duration, heartbeat, log, progress_of_encoding


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, logger="vse_scale")
    return caplog.messages


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")]
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_line_at_most_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lines: list[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = Progress("step", 10, initial=2, unit="steps")
    for _ in range(8):
        now[0] += 2.0
        bar.advance(details="loss 0.5")
    bar.close()
    assert caplog.messages[0] == "step 5/10 steps  loss 0.5  0:10 left"
    assert len(caplog.messages) == 2


def test_what_is_invisible_is_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lines: list[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    Progress("step", 10, unit="steps", visible=False).advance()
    assert not caplog.messages


def test_a_silent_block_says_that_it_lives(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lines: list[str]
) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT_SECONDS", 0.02)
    with heartbeat("compiling"):
        time.sleep(0.2)
    assert len(caplog.messages) >= 2
    assert caplog.messages[0].startswith("compiling (0:0")


def test_encoding_reports_each_kind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lines: list[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress_of_encoding() as report:
        for kind in ("images", "captions"):
            for done in (0, 2, 4):
                report(kind, done, 4)
    assert [m.split("  ")[0] for m in caplog.messages] == [
        "encoding images 2/4 images", "encoding images 4/4 images",
        "encoding captions 2/4 captions", "encoding captions 4/4 captions",
    ]  # fmt: skip
