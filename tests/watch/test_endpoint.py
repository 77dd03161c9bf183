"""The port of the metrics: where it listens, and how little a client can do there.

After prometheus/client_python#139 (one connection that says nothing keeps all others out) and
#1098 (PROMETHEUS_MULTIPROC_DIR changes what a gauge is).
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from vse_scale.config import Config
from vse_scale.training.watch import endpoint
from vse_scale.training.watch.endpoint import CONNECTIONS, Endpoint


@pytest.fixture
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Gauge("loss", "of a step", registry=made).set(3)
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return answer.read().decode()


def test_it_listens_where_it_is_told_and_says_so(registry, caplog) -> None:
    caplog.set_level(logging.INFO)
    port = free_port()
    served = Endpoint(registry, "127.0.0.1", port)
    assert "loss 3.0" in scraped(port)
    assert f"metrics at http://127.0.0.1:{port}/metrics, for this machine alone" in caplog.text
    with socket.socket() as other:  # 127.0.0.2 is another address of this machine
        assert other.connect_ex(("127.0.0.2", port)) != 0
    served.close()
    everywhere = Endpoint(registry, "0.0.0.0", port)
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", port)) == 0
    everywhere.close()


def test_this_machine_alone_is_the_default(small_run: Path) -> None:
    assert Config.load(small_run).telemetry.address == "127.0.0.1"


def still_open(clients: list[socket.socket]) -> list[socket.socket]:
    """Return the clients whose connections the server has not closed."""
    found = []
    for client in clients:
        client.setblocking(False)
        try:
            if client.recv(1):
                found.append(client)
        except BlockingIOError:
            found.append(client)
        except ConnectionResetError:
            pass
    return found


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_clients_that_say_nothing_are_few(registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint._Handler, "timeout", 120.0)
    port = free_port()
    served = Endpoint(registry, "127.0.0.1", port)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS + 8)]
    assert within(30, lambda: len(still_open(idle)) <= CONNECTIONS)
    assert len(still_open(idle)) == CONNECTIONS
    for client in idle:
        client.close()
    served.close()


def test_clients_that_say_nothing_are_let_go(registry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < endpoint._Handler.timeout <= 10
    monkeypatch.setattr(endpoint._Handler, "timeout", 0.5)
    port = free_port()
    served = Endpoint(registry, "127.0.0.1", port)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
    assert within(30, lambda: not still_open(idle))
    assert "loss 3.0" in scraped(port)
    for client in idle:
        client.close()
    served.close()


@pytest.mark.parametrize(
    ("address", "port", "reason"),
    [("198.51.100.7", 9840, "assign"), ("no host", 9840, ""), ("127.0.0.1", 70_000, "")],
)
def test_an_address_that_is_none_is_a_warning(registry, caplog, address, port, reason) -> None:
    Endpoint(registry, address, port).close()
    assert f"{address} port {port}: no metrics are served there" in caplog.text
    assert reason in caplog.text
    assert "the run goes on" in caplog.text


FOLLOW = """
import sys
from vse_scale.config import Config
from vse_scale.training.watch.observers import Observers
from vse_scale.world.processes import ALONE
config = Config.load(sys.argv[1], ["telemetry.prometheus_port=null", "telemetry.tensorboard=false"])
Observers(config, ALONE, next_step=0, total_steps=9).close()
print("went on")
"""


def test_the_folder_of_another_programs_metrics_is_no_fault(
    small_run: Path, tmp_path: Path
) -> None:
    """A pod's PROMETHEUS_MULTIPROC_DIR, for processes that share a folder which is not there."""
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW, small_run],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "gone")},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.stdout == "went on\n", done.stderr
