"""Two hosts on one machine: network namespaces that a veth pair connects."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from groups import Group
from ranks import environment_without_launcher


class Host:
    """A network namespace with one address."""

    def __init__(self, name: str, interface: str, address: str) -> None:
        self.name, self.interface, self.address = name, interface, address

    def start(self, command: list[str], log: Path) -> Group:
        """Run ``command`` here; both outputs are appended to ``log``."""
        environment = environment_without_launcher() | {"GLOO_SOCKET_IFNAME": self.interface}
        return Group(["ip", "netns", "exec", self.name, *command], environment, log)

    def link(self, state: str) -> None:
        """Take the network cable out ("down"), or plug it in ("up")."""
        ip("-n", self.name, "link", "set", self.interface, state)

    def kill(self) -> None:
        """End all processes at once, as a loss of power does."""
        for pid in ip("netns", "pids", self.name).split():
            os.kill(int(pid), signal.SIGKILL)


class Cable:
    """Two hosts and what connects them; a context that takes all of it down again."""

    def __enter__(self) -> tuple[Host, Host]:
        if shutil.which("ip") is None:
            pytest.skip("needs ip (Debian's package iproute2)")
        mark = os.getpid() % 100_000
        self._hosts = (
            Host(f"vse-a-{mark}", f"vsea{mark}", "10.213.7.1"),
            Host(f"vse-b-{mark}", f"vseb{mark}", "10.213.7.2"),
        )
        first, second = self._hosts
        try:
            ip("netns", "add", first.name)
            ip("netns", "add", second.name)
            ends = (first.interface, "type", "veth", "peer", "name", second.interface)
            ip("link", "add", *ends)
            for host in self._hosts:
                ip("link", "set", host.interface, "netns", host.name)
                ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
                ip("-n", host.name, "link", "set", "lo", "up")
                host.link("up")
        except subprocess.CalledProcessError as error:
            self.__exit__()
            pytest.skip(f"needs network namespaces, which are not allowed here: {error.stderr}")
        return self._hosts

    def __exit__(self, *exception: object) -> None:
        for host in self._hosts:
            try:
                host.kill()
                ip("netns", "del", host.name)
            except subprocess.CalledProcessError:
                continue


def ip(*arguments: str) -> str:
    """Run iproute2's ``ip``."""
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def limit(host: Host, rate: float) -> None:
    """Let ``host`` send at most ``rate`` bytes a second, 32 kB of them at once."""
    bucket = ("tbf", "rate", f"{rate * 8:.0f}bit", "burst", "32kb", "latency", "1s")
    command = ["tc", "-n", host.name, "qdisc", "add", "dev", host.interface, "root", *bucket]
    subprocess.run(command, capture_output=True, text=True, check=True)
