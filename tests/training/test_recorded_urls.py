"""What a run keeps of the URL of its data."""

from __future__ import annotations

import logging

from vse_scale.config import Config
from vse_scale.console import configure_logging, log

URL = "http://user:hunter2@host/set"


def _config(url):
    return Config.parse({"data": {"path": url}, "run": {"dir": "runs/x"}}, "test")


def test_a_run_keeps_no_password_and_goes_on_with_another():
    config = _config(URL)

    assert "hunter2" not in config.to_yaml(recorded=True)
    assert "http://***@host/set" in config.to_yaml(recorded=True)
    assert "hunter2" in config.to_yaml()  # a child reads it
    other = _config(URL.replace("hunter2", "hunter3"))
    assert config.recorded() == other.recorded()


def test_the_log_masks_passwords(capsys):
    handlers, level = log.handlers, log.level
    try:
        configure_logging(main=True)
        log.info("reading %s", URL)
    finally:
        log.handlers, log.propagate = handlers, True
        log.setLevel(level or logging.NOTSET)

    assert capsys.readouterr().err.endswith("reading http://***@host/set\n")
