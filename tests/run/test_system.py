"""The origin of a run: its time, its command without secrets, the commit of its code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from vse_scale.run import system

ROOT = Path(__file__).parents[2]


def test_the_command_has_no_secrets_and_the_commit_is_that_of_the_code(monkeypatch):
    url = "data.path=https://me:hunter2@host/set?token=abc"
    monkeypatch.setattr("sys.argv", ["/x/vse_scale/cli.py", "train", "--config", "demo", url])
    found = system.describe_origin()
    assert found["command"].startswith("vse-scale train --config demo ")
    monkeypatch.setattr("sys.argv", ["/x/vse_scale/training/__main__.py", "--config", "demo"])
    assert system.describe_origin()["command"] == "vse-scale train --config demo"
    assert "hunter2" not in found["command"]
    assert "abc" not in found["command"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["started"])
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    if head:
        assert head.startswith(found["commit"].rstrip("+").rpartition("-g")[2])


def test_an_environment_inside_another_checkout_has_no_commit(tmp_path):
    installed = tmp_path / ".venv" / "vse_scale" / "system.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert system._commit(installed) == ""
