"""S3 as moto serves it on this machine, behind a proxy that fails when it is told to."""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
from moto.server import ThreadedMotoServer

Fault = str | None
FAULTS = ("403", "404", "500", "503", "hang", "short", "long", "wrong")
HANG_SECONDS = 30.0
_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>planted</Message></Error>"
_OWN_HEADERS = {"content-length", "transfer-encoding", "date", "server"}
_CODES = {"403": "AccessDenied", "404": "NoSuchKey", "500": "InternalError", "503": "SlowDown"}


class FailingS3:
    """A bucket called ``bucket``.

    Attributes:
        url: address of the proxy, for ``AWS_ENDPOINT_URL``.
        log: method and path of every request that came.
        choose: decides of each request, by its number, method and path, how it fails, if at all.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.log: list[tuple[str, str]] = []
        self.choose: Callable[[int, str, str], Fault] = lambda number, method, path: None
        self._closing = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                proxy.log.append((self.command, self.path))
                fault = proxy.choose(len(proxy.log) - 1, self.command, self.path)
                body = self.read_body()
                if fault == "hang":
                    proxy._closing.wait(HANG_SECONDS)
                    self.close_connection = True
                elif fault in _CODES:
                    text = _ERROR.format(code=_CODES[fault]).encode()
                    self.send(int(fault), {"Content-Type": "application/xml"}, text)
                else:
                    self.forward(body, fault)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def read_body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                del self.headers["Transfer-Encoding"]
                self.headers["Content-Length"] = str(len(body))
                return body

            def forward(self, body: bytes, fault: Fault) -> None:
                upstream = http.client.HTTPConnection("127.0.0.1", proxy._port, timeout=60)
                upstream.request(self.command, self.path, body, dict(self.headers.items()))
                answer = upstream.getresponse()
                data = answer.read()
                headers = {k: v for k, v in answer.getheaders() if k.lower() != "connection"}
                upstream.close()
                if self.command == "GET" and fault == "long":
                    data += bytes(len(data) + 100)
                elif self.command == "GET" and fault == "wrong":
                    data = bytes(byte ^ 0x55 for byte in data)
                length = None
                if self.command == "GET" and fault == "short":
                    length, data = len(data), data[: len(data) // 2]
                self.send(answer.status, headers, data, length)

            def send(
                self, status: int, headers: dict[str, str], data: bytes, length: int | None = None
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in _OWN_HEADERS:
                        self.send_header(name, value)
                known = headers.get("Content-Length", "0")
                size = known if self.command == "HEAD" else str(length or len(data))
                self.send_header("Content-Length", size)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)
                if length is not None:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def fail(self, fault: Fault, *, part: str = "", seconds: float = 1e9) -> None:
        """Fail every request whose method and path hold ``part`` from now on for some time."""
        end = time.monotonic() + seconds
        self.choose = lambda number, method, path: (
            fault if part in f"{method} {path}" and time.monotonic() < end else None
        )

    def fail_once(self, fault: Fault, number: int) -> None:
        """Fail one request of those that come, counted from now."""
        at = len(self.log) + number
        self.choose = lambda n, method, path: fault if n == at else None

    def heal(self) -> None:
        """Answer every request as S3 does."""
        self.choose = lambda number, method, path: None

    def close(self) -> None:
        """End the proxy, and requests that hang in it."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def failing_s3() -> Iterator[FailingS3]:
    """Serve a new bucket; the environment must name the address and some credentials."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    proxy = FailingS3(port)
    try:
        yield proxy
    finally:
        proxy.close()
        server.stop()


def credentials(proxy: FailingS3) -> dict[str, str]:
    """Return the standard variables that lead to the proxy."""
    return {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def new_bucket(proxy: FailingS3, name: str) -> str:
    """Make a bucket, and return its URL."""
    proxy.heal()
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    return f"s3://{name}"


@contextmanager
def fresh_bucket(
    proxy: FailingS3, node: pytest.Item, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Make a bucket for one test, found through the standard variables; gives its URL."""
    for name, value in credentials(proxy).items():
        monkeypatch.setenv(name, value)
    yield new_bucket(proxy, f"b{abs(hash(node.nodeid))}")
    proxy.heal()
