"""``vse-scale serve``."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Annotated

import typer

from vse_scale.commands.common import open_encoder, weights_sha256
from vse_scale.console import log
from vse_scale.errors import LaunchError
from vse_scale.run.extras import require
from vse_shards.terminal import tell

_CONNECTIONS = 200  # at once; a further one is answered 503
_LONGEST_HEAD = 16_384  # bytes of a request's first line and headers


def serve(
    index: Annotated[Path, typer.Option(help="a folder that embed wrote")],
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine need another")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free")] = 8080,
    model: Annotated[
        Path | None, typer.Option(help="present folder of the model, if it was moved")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="search all, also where `vse-scale index` made an index")
    ] = False,
) -> None:
    """Search an index in the browser, or over an API.

    By words, by a picture or by both; /openapi.json describes the API. It asks for no password,
    and listens for this machine alone unless --host says otherwise.
    """
    require("serve", "vse-scale serve")
    listening = _listen(host, port)
    log.info("opening %s", index)
    import uvicorn

    from vse_scale.retrieval.index import Index
    from vse_scale.retrieval.serving.answers import Answers
    from vse_scale.retrieval.serving.app import make_app

    opened = Index(index, exact=exact)
    made_by = model or opened.model
    encoder = open_encoder(made_by, batch=1, threads=1)
    opened.check_model(made_by, weights_sha256(made_by))
    encoder.model.output_dim = opened.dim
    names = _names(host)
    app = make_app(Answers(opened, encoder), names)
    tell(f"search: http://{_in_address(host)}:{listening.getsockname()[1]}/")
    alone = "*" not in names
    who = "this machine alone (--host)" if alone else "whoever reaches this address, no password"
    log.info("open to %s; /openapi.json describes the API, /metrics is for Prometheus", who)
    uvicorn.Server(
        uvicorn.Config(
            app, http="h11", ws="none", lifespan="off", log_level="warning", access_log=False,
            server_header=False, limit_concurrency=_CONNECTIONS, timeout_keep_alive=5,
            h11_max_incomplete_event_size=_LONGEST_HEAD, timeout_graceful_shutdown=5,
        )
    ).run(sockets=[listening])  # fmt: skip


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, UnicodeError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or "no name of a machine"
        raise LaunchError(
            f"--host {host[:80]} --port {port}: cannot be listened on ({reason}); "
            "give another port, or an address of this machine"
        ) from error
    return listening


def _names(host: str) -> list[str]:
    """Return the names under which a server that listens on ``host`` may be asked; "*": any."""
    if not _is_loopback(host):
        return ["*"]
    return ["localhost", "127.0.0.1", "[::1]", _in_address(host)]


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
