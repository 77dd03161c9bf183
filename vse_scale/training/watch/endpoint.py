"""The HTTP server of a rank's metrics: few connections, each for a short time."""

from __future__ import annotations

import socket
import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from vse_scale.console import log

CONNECTIONS = 16  # at once; Prometheus needs one
SILENCE_SECONDS = 10.0  # after which a client that says nothing is let go


class Endpoint:
    """Serves a registry over HTTP at one address.

    A port in use, or an address that is none of this machine's, is logged; the run goes on without
    the endpoint.
    """

    def __init__(self, registry: CollectorRegistry, address: str, port: int) -> None:
        self._server: WSGIServer | None = None
        shown = f"[{address}]" if ":" in address else address
        try:
            kind = _Server6 if ":" in address else _Server
            app = make_wsgi_app(registry)
            self._server = make_server(address, port, app, kind, handler_class=_Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            log.warning(
                "%s port %d: no metrics are served there (%s); the run goes on. Set "
                "telemetry.prometheus_port to the first of as many free ports as a machine has "
                "ranks, or to null, and telemetry.address to one of this machine's",
                shown, port, getattr(error, "strerror", None) or error,
            )  # fmt: skip
            return
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        log.info(
            "metrics at http://%s:%d/metrics%s", shown, port,
            "" if address not in ("127.0.0.1", "::1", "localhost")
            else ", for this machine alone (telemetry.address)",
        )  # fmt: skip

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    """A thread per connection, and no more of them than `CONNECTIONS`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(*arguments, **more)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def server_bind(self) -> None:
        # Not WSGIServer's, which asks a name server for the name of this machine.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is no fault of the run's."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = SILENCE_SECONDS

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log no requests."""
