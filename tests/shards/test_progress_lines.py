"""What people see of a long build: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from vse_shards import progress
from vse_shards.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_says_rate_rejects_and_time_left(clock, capsys):
    with Progress("building", 1000, "images") as shown:
        clock[0] += 4
        shown.update(100)
        clock[0] += 4
        shown.update(200, "3 rejected")
        clock[0] += 4
        shown.update(300)

    assert capsys.readouterr().err.splitlines() == [
        "building: 200 of 1,000 images, 25/s, 3 rejected, 32 s left"
    ]


def test_without_a_total_no_time_is_promised(clock, capsys):
    with Progress("reading", None, "rows") as shown:
        clock[0] += 10
        shown.update(5000)

    assert capsys.readouterr().err == "reading: 5,000 rows, 500/s\n"


@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_a_summary(write_rows, tmp_path, tools):
    files = {f"{n}.jpg": tools.encoded(tools.picture(n)) for n in range(30)} | {"bad.jpg": b"no"}
    rows = [{"image": name, "captions": ["one", "two"]} for name in files]
    arguments = ["build", "--source", "jsonl", "--input", str(write_rows(rows, files))]
    arguments += ["--out", str(tmp_path / "out"), "--workers", "2", "--shard-samples", "8"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", "from vse_shards.cli import main; main()", *arguments], stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    said = shown.decode()

    assert process.returncode == 0, said
    assert re.search(
        r"building: +100%.*31/31 \[\d\d:\d\d<\d\d:\d\d, .*images/s, 1 rejected\]", said
    )
    assert "  train: 30 images, 60 captions in 4 shards" in said
    assert re.search(
        r"built .*/out: 30 images \(30 stored unchanged\), 60 captions, .* images/s", said
    )
    assert "1 not an image rejected: " in said
