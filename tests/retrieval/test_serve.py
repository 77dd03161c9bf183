"""``vse-scale serve``, as a process that is asked over HTTP.

After fastapi/fastapi#1181 and xorbitsai/xagent#1887 (bodies without a bound, or with one that comes
after they were kept), AUTOMATIC1111/stable-diffusion-webui#12822 and lllyasviel/Fooocus#4198 (any
file of the machine is served, to any machine).
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import itertools
import json
import re
import shutil
import socket
import subprocess
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import psutil
import pytest
import torch
from axe import findings, tab
from commandline import installed, vse_scale
from groups import Group
from PIL import Image
from ranks import environment_without_launcher

from vse_scale.commands.serve import _names, serve
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import LaunchError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.retrieval.encoder import Encoder
from vse_scale.retrieval.index import Index, embed_query
from vse_scale.run import extras

for _name in ("fastapi", "uvicorn"):
    pytest.importorskip(_name, reason=f"{_name} is not installed: pip install 'vse-scale[serve]'")

WORDS = "a red circle & <script>alert(1)</script>"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


@dataclass
class Client:
    port: int
    pid: int = 0

    def __call__(self, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            method = "GET" if body is None else "POST"
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def search(self, body: bytes | None = None, **asked: object) -> Answer:
        return self(f"/api/search?{urlencode(asked)}", body)


@pytest.fixture(scope="module")
def encoder(model_folder):
    model = VSEModel.from_pretrained(model_folder)
    return Encoder(model, CaptionTokenizer.load(model_folder), torch.device("cpu"), 16, 1)


@pytest.fixture(scope="module")
def index(model_folder, scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("index") / "scenes"
    done = vse_scale(
        "embed", "--model", model_folder, "--data", scenes, "--split", "val", "--out", out
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def ask(index, tmp_path_factory) -> Iterator[Client]:
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [installed("vse-scale"), "serve", "--index", index, "--port", "0"]
    with Group([*map(str, command)], environment_without_launcher(), log) as server:
        assert server.wait_for_words("Prometheus"), server.said()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", server.said())[1])
        assert "this machine alone" in server.said()
        client = Client(port, server.pid)
        for _ in range(600):  # bound before it listens
            try:
                client("/metrics")
                break
            except OSError:
                time.sleep(0.1)
        yield client
        assert "Traceback" not in server.said()


@pytest.fixture
def picture(scenes) -> bytes:
    return bytes(ShardDataset(scenes, "val").image_bytes(3))


def test_words_find_what_the_command_finds(ask, index, encoder):
    _, (expected,) = Index(index).search(embed_query(encoder, "a red circle"), 7, "captions")
    found = ask.search(text="a red circle", side="captions", limit=7).json()
    assert (found["side"], found["offset"], found["total"]) == ("captions", 0, 100)
    assert [hit["row"] for hit in found["hits"]] == [hit.row for hit in expected]
    for hit, other in zip(found["hits"], expected, strict=True):
        assert (hit["id"], hit["text"]) == (other.id, other.text)
        assert abs(hit["score"] - other.score) < 1e-5


def test_pages_are_parts_of_one_list(ask):
    whole = ask.search(text="two stars", limit=20).json()["hits"]
    parts = [
        ask.search(text="two stars", offset=at, limit=6).json()["hits"] for at in (0, 6, 12, 18)
    ]
    assert [hit for part in parts for hit in part] == whole
    assert ask.search(text="two stars", offset=50).json()["hits"] == []


def test_a_picture_finds_itself_and_words_pull_it_away(ask, picture, encoder, index):
    assert ask.search(picture).json()["hits"][0]["row"] == 3
    image, text = encoder.pictures([picture]), embed_query(encoder, "two stars")
    for weight in (0.0, 0.3, 1.0):
        mixed = torch.nn.functional.normalize(weight * image + (1 - weight) * text)
        _, (expected,) = Index(index).search(mixed, 20, "images")
        found = ask.search(picture, text="two stars", weight=weight).json()["hits"]
        assert [hit["row"] for hit in found] == [hit.row for hit in expected], weight


def test_pictures_of_the_index_alone_are_served(ask):
    answer = ask("/picture/images/3")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
    assert max(Image.open(io.BytesIO(answer.body)).size) <= 240
    assert ask("/picture/captions/3").status == 200  # of the caption's image


def bomb() -> bytes:
    """A PNG of 100,000 x 100,000 pixels, without them."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


BAD = {
    "no words": ("/api/search", None, 422, "text: Field required"),
    "empty words": ("/api/search?text=+", None, 400, "the query is empty"),
    "many letters": (f"/api/search?text={'a' * 2001}", None, 422, "at most 2000"),
    "many words": (f"/api/search?text={'a+' * 900}", None, 400, "shorten it"),
    "a long line": (f"/api/search?text={'a' * 200_000}", None, 400, ""),
    "limit": ("/api/search?text=a&limit=100000", None, 422, "limit: "),
    "offset": ("/api/search?text=a&offset=-1", None, 422, "offset: "),
    "far offset": ("/api/search?text=a&offset=1000", None, 422, "offset: "),
    "side": ("/api/search?text=a&side=../../etc", None, 422, "side: "),
    "weight": ("/api/search?weight=nan", b"x", 422, "weight: "),
    "no picture": ("/api/search", b"", 400, "the body is empty"),
    "no image": ("/api/search", b"<svg onload=alert(1)>", 400, "is no whole image"),
    "cut image": ("/api/search", b"\xff\xd8\xff\xe0", 400, "is no whole image"),
    "bomb": ("/api/search", bomb(), 400, "is no whole image"),
    "huge": ("/api/search", bytes((16 << 20) + 1), 413, "more than 16,777,216 bytes"),
    "row": ("/picture/images/20", None, 404, "no picture of this row"),
    "row below": ("/picture/images/-1", None, 404, "no picture of this row"),
    "a path": ("/picture/images/..%2f..%2fetc%2fpasswd", None, 404, ""),
    "a path as row": ("/picture/images/%2e%2e", None, 422, "row: "),
    "a path as side": ("/picture/%2e%2e/1", None, 422, "side: "),
    "a file": ("/../../../../etc/passwd", None, 404, "Not Found"),
    "gradio's file": ("/file=/etc/passwd", None, 404, "Not Found"),
    "documentation": ("/docs", None, 404, "Not Found"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_one_line(ask, name):
    path, body, status, words = BAD[name]
    try:
        answer = ask(path, body)
    except ConnectionError:  # it hung up before the line was sent
        assert name == "a long line"
        return
    assert answer.status == status, answer.body
    assert answer.headers["x-content-type-options"] == "nosniff" or name == "a long line"
    assert words.encode() in answer.body
    assert len(answer.body.splitlines()) == 1
    assert len(answer.body) < 300
    assert b"Traceback" not in answer.body
    assert b"root:" not in answer.body


def test_a_form_is_told_how_to_send_a_picture(ask, picture):
    form = ask("/api/search", b"--x\r\n", Content_Type="multipart/form-data; boundary=x")
    assert (form.status, b"--data-binary" in form.body) == (415, True)


def test_a_body_of_unknown_length_is_bounded(ask):
    """As a client sends it that streams: without Content-Length."""
    with socket.create_connection(("127.0.0.1", ask.port), timeout=120) as line:
        line.sendall(
            b"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        try:
            for _ in range(40):
                line.sendall(chunk)
        except OSError:  # it has left
            pass
        said = line.recv(200)
    assert said.startswith(b"HTTP/1.1 413 ")


def test_a_page_of_another_site_is_refused(ask):
    """After DNS rebinding: the name is another site's, the address this machine's."""
    assert ask("/api/search?text=a", Host="attacker.example").status == 400
    assert ask("/api/search?text=a", Host="localhost").status == 200


@pytest.mark.parametrize("target", ["*", "nowhere"])
def test_a_target_without_a_slash_is_answered(ask, target):
    """As of "OPTIONS *", which asks for nothing in particular."""
    with socket.create_connection(("127.0.0.1", ask.port), timeout=120) as line:
        line.sendall(f"OPTIONS {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        said = line.recv(200)
    assert said.startswith(b"HTTP/1.1 404 "), said


def test_an_address_of_this_machine_is_one_of_its_names():
    assert "127.0.0.2" in _names("127.0.0.2")
    assert "[::1]" in _names("::1")
    assert _names("0.0.0.0") == _names("192.0.2.1") == ["*"]


def test_fifty_clients_at_once(ask, picture):
    def client(number: int) -> list[tuple[int, list[int]]]:
        body = picture if number % 5 == 0 else None
        answers = [ask.search(body, text=f"a circle {number % 3}", limit=5) for _ in range(3)]
        return [(a.status, [hit["row"] for hit in a.json()["hits"]]) for a in answers]

    with ThreadPoolExecutor(50) as clients:
        found = list(clients.map(client, range(50)))
    assert {status for some in found for status, _ in some} == {200}
    # An answer is that of its own question.
    for number, some in enumerate(found):
        assert len({tuple(rows) for _, rows in some}) == 1
        assert some[0] == found[number % 15][0]


@pytest.mark.soak
def test_fifty_clients_for_a_minute(ask, picture):
    """No answer is another than asked for, and memory stays what it is after 15 seconds."""
    began, asked = time.monotonic(), ("one circle", "two stars", "a red square")
    wrong = [("/api/search", None, 422), ("/api/search?text=a", b"no picture", 400)]
    wrong += [
        ("/picture/images/../../etc/passwd", None, 404),
        ("/api/search?text=" + 3000 * "a", None, 422),
    ]

    def client(number: int) -> list[tuple[float, int, int]]:
        found = []
        for turn in itertools.count(number):
            if time.monotonic() > began + 60:
                return found
            start, expected = time.monotonic(), 200
            if turn % 10 == 9:
                path, body, expected = wrong[turn // 10 % len(wrong)]
                answer = ask(path, body)
            else:
                answer = ask.search(picture if turn % 10 == 0 else None, text=asked[turn % 3])
            found.append((time.monotonic() - start, answer.status, expected))
        raise AssertionError

    server = psutil.Process(ask.pid)
    worked = sum(server.cpu_times()[:2])
    with ThreadPoolExecutor(50) as clients:
        running = [clients.submit(client, number) for number in range(50)]
        time.sleep(15)
        early = server.memory_info().rss
        found = [one for some in running for one in some.result()]
    seconds = sorted(second for second, status, _ in found if status == 200)
    p95, grown = seconds[len(seconds) * 95 // 100], server.memory_info().rss - early
    worked = (sum(server.cpu_times()[:2]) - worked) / len(found)
    print(
        f"\n{len(found)} answers, median {seconds[len(seconds) // 2]:.3f} s, p95 {p95:.3f} s, "
        f"{1000 * worked:.1f} ms of a core each; {early / 1e6:.0f} MB after 15 s, "
        f"{grown / 1e6:+.1f} MB after 60 s"
    )
    assert [one for one in found if one[1] != one[2]] == []
    assert grown < 20e6


def test_a_picture_waits_for_its_turn_no_longer_than_it_may(index, encoder, monkeypatch):
    from fastapi import HTTPException

    from vse_scale.retrieval.serving import app
    from vse_scale.retrieval.serving.answers import Answers

    async def crowded() -> None:
        server = app.Server(Answers(Index(index), encoder))
        monkeypatch.setattr(app, "SECONDS", 0.05)
        async with contextlib.AsyncExitStack() as held:
            for _ in range(app.UPLOADS):
                await held.enter_async_context(server._turn())
            with pytest.raises(HTTPException, match="8 other pictures were still at work") as told:
                await server._turn().__aenter__()
            assert told.value.status_code == 503
        async with server._turn():  # the places are free again
            pass

    asyncio.run(crowded())


def test_all_that_an_approximate_index_finds_is_the_last_page(index, encoder, monkeypatch):
    from vse_scale.retrieval.serving import app
    from vse_scale.retrieval.serving.answers import Answers

    answers = Answers(Index(index), encoder)
    few = answers.search("a", None, 0.0, "captions", 3)
    monkeypatch.setattr(answers, "search", lambda *asked: few[: asked[-1]])

    async def totals() -> list[int]:
        server = app.Server(answers)
        pages = [await server._found("a", None, 0.0, "captions", at, 2) for at in (0, 2, 4)]
        return [page.total for page in pages]

    assert asyncio.run(totals()) == [100, 3, 3]


def test_metrics_count_what_was_asked(ask):
    def counted() -> float:
        text = ask("/metrics").body.decode()
        line = r'^vse_serve_requests_total{path="api",status="200"} (\S+)$'
        found = re.search(line, text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    before = counted()
    ask.search(text="a")
    assert counted() == before + 1
    ask("/nowhere/" + "x" * 50)
    text = ask("/metrics").body.decode()
    assert "nowhere" not in text  # no label for what anybody types
    assert "vse_serve_seconds_bucket" in text


def test_the_api_is_described(ask):
    described = ask("/openapi.json").json()
    assert set(described["paths"]["/api/search"]) == {"get", "post"}
    assert described["openapi"].startswith("3.")


def test_the_page_takes_nothing_from_elsewhere(ask):
    page = ask("/")
    assert page.status == 200
    html = page.body.decode()
    assert not re.search(r"(src|href)=|https?://|@import|url\(", html.replace("image.src = ", ""))
    assert "'unsafe-inline'; img-src 'self'" in page.headers["content-security-policy"]
    assert "script-src 'sha256-" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("words", "written"),
    [(WORDS, quote(WORDS)), ("50% off", "50% off")],
    ids=["quoted", "as typed"],
)
def test_the_page_searches_in_a_browser(words, written, ask, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium, which is not installed")
    shown = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--virtual-time-budget=20000",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
            f"http://127.0.0.1:{ask.port}/#{written}",
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    hits = re.findall(r"<li>.*?</li>", shown.stdout, re.DOTALL)
    assert len(hits) == 20, shown.stdout[-2000:]
    assert "20 of 20 images, nearest first" in unescape(shown.stdout)
    rows = [int(row) for row in re.findall(r'src="/picture/images/(\d+)"', shown.stdout)]
    assert rows == [hit["row"] for hit in ask.search(text=words, limit=24).json()["hits"]]
    assert "<script>alert" not in shown.stdout


@pytest.mark.slow
def test_the_address_links_to_what_was_searched(ask, tmp_path):
    typed = """(() => { const form = document.querySelector('form');
      form.elements.text.value = '50% "red" #1'; form.requestSubmit(); return location.href })()"""
    with tab(tmp_path / "profile") as page:
        page.open(f"http://127.0.0.1:{ask.port}/")
        address = page.value(typed)
        assert address == f"http://127.0.0.1:{ask.port}/#50%25%20%22red%22%20%231"
        page.open("about:blank")
        page.open(address)
        page.value(SHOWN)
        assert page.value("document.querySelector('form').elements.text.value") == '50% "red" #1'


SHOWN = """new Promise(done => { const timer = setInterval(() => {
  if (document.querySelectorAll('li').length) { clearInterval(timer); done(); } }, 20) })"""


@pytest.mark.slow
def test_axe_finds_nothing_on_the_page_and_on_what_search_writes(ask, index, tmp_path):
    page = tmp_path / "found.html"
    done = vse_scale("search", "--index", index, "a red circle", "--html", page)
    assert done.returncode == 0, done.stderr
    urls = [f"http://127.0.0.1:{ask.port}/#two%20stars", page.as_uri()]
    assert findings(tmp_path / "profile", urls, SHOWN) == []


def test_an_index_of_a_folder_serves_no_file_beside_it(encoder, model_folder, tmp_path):
    """An index that names files outside of its folder, as one that was tampered with."""
    from vse_scale.retrieval.serving.answers import Answers

    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40)).save(secret)
    folder, photos = tmp_path / "index", tmp_path / "photos"
    for made in (folder, photos):
        made.mkdir()
    Image.new("RGB", (40, 40), "red").save(photos / "a.png")
    (photos / "link.png").symlink_to(secret)
    ids = ["a.png", "../secret.png", str(secret), "link.png"]
    np.save(folder / "images.npy", np.eye(4, 24, dtype=np.float32))
    (folder / "images.jsonl").write_text("".join(json.dumps({"id": i}) + "\n" for i in ids))
    described = {"sides": ["images"], "model": str(model_folder), "source": {"images": str(photos)}}
    (folder / "index.json").write_text(json.dumps(described))
    answers = Answers(Index(folder), encoder)
    served = [answers.small_picture("images", row) is not None for row in range(5)]
    assert served[0]
    assert served[1:3] == [False, False]
    assert not served[4]


def test_a_port_in_use_is_one_line(index):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LaunchError, match=r"--port \d+: cannot be listened on .*another port"):
            serve(index, "127.0.0.1", taken.getsockname()[1])
    with pytest.raises(LaunchError, match="address of this machine"):
        serve(index, "203.0.113.7", 0)


def test_without_its_packages_it_names_them(index, monkeypatch):
    monkeypatch.setattr(extras, "is_installed", lambda module: module != "fastapi")
    with pytest.raises(LaunchError) as caught:
        serve(index)
    assert str(caught.value) == (
        "vse-scale serve needs fastapi, not installed here; pip install 'vse-scale[serve]'"
    )
