"""The search server: routes, bounds on what a request may cost, and metrics."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from html import escape
from importlib.resources import files
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteError
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from vse_scale.errors import ConfigError, ModelError, UserError
from vse_scale.html.document import document
from vse_scale.retrieval.index import SideName
from vse_scale.retrieval.serving.answers import Answers
from vse_shards import __version__

MOST_BYTES = 16 << 20  # of a picture that is sent
MOST_LETTERS = 2_000  # of the words
MOST_HITS = 1_000  # that can be paged through
PAGE_HITS = 100  # of one answer
SECONDS = 30.0  # to send a picture, and again to be answered
UPLOADS = 8  # pictures that are held at a time; further ones wait

Value = TypeVar("Value")
Words = Annotated[str, Query(max_length=MOST_LETTERS, description="what to look for")]
MaybeWords = Annotated[
    str | None, Query(max_length=MOST_LETTERS, description="words to weigh against the picture")
]
Weight = Annotated[float, Query(ge=0.0, le=1.0, description="share of the picture, beside words")]
Side = Annotated[SideName | None, Query(description="to search; default: images, if embedded")]
Offset = Annotated[int, Query(ge=0, lt=MOST_HITS, description="hits to pass over")]
Limit = Annotated[int, Query(ge=1, le=PAGE_HITS, description="hits to return")]


class Found(BaseModel):
    """A hit: its row and id in the index, its words, its similarity, the address of its picture."""

    row: int
    id: int | str
    text: str
    score: float
    picture: str


class Page(BaseModel):
    """Hits, best first, from ``offset`` on; ``total`` can be paged through."""

    side: SideName
    offset: int
    total: int
    hits: list[Found]


class Server:
    """Handlers of the routes; a thread for searches, and one for pictures.

    Attributes:
        answers: that are given.
        registry: of the metrics.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.registry = CollectorRegistry()
        self._searching = ThreadPoolExecutor(1, "vse-search")
        self._showing = ThreadPoolExecutor(1, "vse-picture")
        self._uploads = asyncio.Semaphore(UPLOADS)
        self._page, self._policy = _page(answers)

    async def by_words(
        self, text: Words, side: Side = None, offset: Offset = 0, limit: Limit = 20
    ) -> Page:
        """Find what is nearest to words."""
        return await self._found(text, None, 0.0, side, offset, limit)

    async def by_picture(
        self,
        request: Request,
        text: MaybeWords = None,
        weight: Weight = 0.5,
        side: Side = None,
        offset: Offset = 0,
        limit: Limit = 20,
    ) -> Page:
        """Find what is nearest to the picture in the body, and to words where they are given."""
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(
                415, "send the file's bytes as the body (curl --data-binary @photo.jpg), not a form"
            )
        async with self._turn():
            picture = await _body(request)
            return await self._found(text or None, picture, weight, side, offset, limit)

    async def picture(self, side: SideName, row: int) -> Response:
        """Return the picture of a row of the index, small, as JPEG."""
        self._side(side)
        found = await self._within(self._showing, lambda: self.answers.small_picture(side, row))
        if found is None:
            raise HTTPException(404, "there is no picture of this row")
        return Response(found, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    async def page(self) -> HTMLResponse:
        """Return the page."""
        return HTMLResponse(self._page, headers={"Content-Security-Policy": self._policy})

    async def metrics(self) -> Response:
        """Return the metrics, in Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4")

    async def _found(
        self, text: str | None, picture: bytes | None, weight: float,
        wanted: SideName | None, offset: int, limit: int,
    ) -> Page:  # fmt: skip
        side = self._side(wanted)
        total = min(self.answers.index.count(side), MOST_HITS)
        top = min(offset + limit, total)
        try:
            hits = await self._within(
                self._searching, lambda: self.answers.search(text, picture, weight, side, top)
            )
        except (ConfigError, ModelError) as error:
            raise HTTPException(400, str(error)) from error
        found = [
            Found(
                row=h.row, id=h.id, text=h.text, score=h.score, picture=f"/picture/{side}/{h.row}"
            )
            for h in hits[offset:]
        ]
        if len(hits) < top:  # all that an approximate index finds
            total = len(hits)
        return Page(side=side, offset=offset, total=total, hits=found)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Hold one of the `UPLOADS` places; who waits `SECONDS` for one is refused."""
        try:
            async with asyncio.timeout(SECONDS):
                await self._uploads.acquire()
        except TimeoutError:
            raise HTTPException(
                503, f"{UPLOADS} other pictures were still at work after {SECONDS:.0f} s; try again"
            ) from None
        try:
            yield
        finally:
            self._uploads.release()

    def _side(self, wanted: SideName | None) -> SideName:
        sides = self.answers.index.sides
        if wanted is not None and wanted not in sides:
            raise HTTPException(400, f"the index holds {' and '.join(sides)}, no {wanted}")
        return wanted or sides[0]

    async def _within(self, pool: ThreadPoolExecutor, work: Callable[[], Value]) -> Value:
        """Return what ``work`` does in ``pool``; what still waits after `SECONDS` is not begun."""
        try:
            async with asyncio.timeout(SECONDS):
                return await asyncio.get_running_loop().run_in_executor(pool, work)
        except TimeoutError:
            raise HTTPException(503, f"no answer within {SECONDS:.0f} s; try again") from None


async def _body(request: Request) -> bytes:
    """Return the body of a request, of at most `MOST_BYTES`, sent within `SECONDS`."""
    refused = HTTPException(413, f"the picture has more than {MOST_BYTES:,} bytes; send a smaller")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MOST_BYTES:
        raise refused
    data = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                data += part
                if len(data) > MOST_BYTES:
                    raise refused
    except TimeoutError:
        raise HTTPException(408, f"the picture did not come within {SECONDS:.0f} s") from None
    if not data:
        raise HTTPException(400, "the body is empty; send a picture's bytes")
    return bytes(data)


class _Watched:
    """Counts and times requests, and adds headers that keep a browser from guessing."""

    def __init__(self, app: Any, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter(
            "vse_serve_requests", "Requests by path and status", ["path", "status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "vse_serve_seconds", "Seconds until the answer began", ["path"], registry=registry
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        first = scope["path"].removeprefix("/").split("/")[0]  # that of "OPTIONS *" has no slash
        path = first if first in ("", "api", "picture", "metrics") else "other"
        began = time.perf_counter()

        async def watched(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._requests.labels(path, message["status"]).inc()
                self._seconds.labels(path).observe(time.perf_counter() - began)
                message["headers"] = [
                    *message["headers"],
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self._app(scope, receive, watched)


def make_app(answers: Answers, hosts: list[str]) -> FastAPI:
    """Return the server's application.

    Args:
        answers: that it gives.
        hosts: names under which it may be asked; ``["*"]``: any. A page of another site could
            else reach a server of this machine, by a name that it points there.
    """
    server = Server(answers)

    async def refused(request: Request, error: StarletteError) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": " ".join(str(error).split())}, 503)

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    app = FastAPI(
        title="vse-scale serve",
        version=__version__,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        exception_handlers={
            StarletteError: refused,
            RequestValidationError: malformed,
            UserError: failed,  # the index was moved, or a picture of it is damaged
            ClientDisconnect: left,
        },
    )
    app.add_api_route("/", server.page, include_in_schema=False)
    app.add_api_route("/api/search", server.by_words, response_model=Page)
    app.add_api_route(
        "/api/search", server.by_picture, methods=["POST"], response_model=Page,
        openapi_extra={"requestBody": {"required": True, "content": {"image/*": {}}}},
    )  # fmt: skip
    app.add_api_route("/picture/{side}/{row}", server.picture, response_class=Response)
    app.add_api_route("/metrics", server.metrics, response_class=Response)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    app.add_middleware(_Watched, registry=server.registry)
    return app


def _page(answers: Answers) -> tuple[str, str]:
    """Return the page, and the policy by which it runs its own script and no other."""
    folder = files("vse_scale.retrieval")
    name = answers.index.folder.name
    sides = "".join(f'<option value="{side}">{side}</option>' for side in answers.index.sides)
    html = document(
        "vse_scale.retrieval",
        "serve.html",
        f"Search {name}",
        style=(folder / "serve.css").read_text("utf-8"),
        script=(folder / "serve.js").read_text("utf-8"),
        index=escape(name),
        sides=sides,
    )
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return html, policy
