"""A real Prometheus server for tests."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

MONITORING = Path(__file__).parents[2] / "launch" / "monitoring"


def free_ports(count: int) -> int:
    """Return the first of ``count`` neighbouring ports that nothing listens on."""
    while True:
        # Below those that the system hands out to whoever asks for any.
        first = random.randrange(20_000, 30_000)
        probes = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("", first + offset))
            return first
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()


class Prometheus:
    """The shipped configuration, with other targets, in a hurry."""

    def __init__(self, folder: Path, targets: list[str], run: str) -> None:
        (folder / "targets.yml").write_text(
            yaml.safe_dump([{"targets": targets, "labels": {"run": run}}])
        )
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "1s"}
        config["rule_files"] = [str(MONITORING / "alerts.yml")]
        (scrape,) = config["scrape_configs"]
        scrape["file_sd_configs"] = [{"files": [str(folder / "targets.yml")]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._url = f"http://127.0.0.1:{free_ports(1)}"
        self._process = subprocess.Popen(
            [
                *("prometheus", "--log.level=warn", f"--config.file={folder}/prometheus.yml"),
                *(f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={self._url[7:]}"),
            ]
        )
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{self._url}/-/ready", timeout=1)
                return
            except OSError:
                time.sleep(0.1)
        self.close()
        raise AssertionError("Prometheus does not become ready")

    def get(self, what: str, **parameters: object) -> Any:
        """Ask its API; return ``data``."""
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def samples(self, selector: str) -> dict[float, float]:
        """Return every sample of the one series that ``selector`` names, by time of its scrape."""
        (series,) = self.get("query", query=f"{selector}[1h]")["result"]
        return {float(when): float(value) for when, value in series["values"]}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
