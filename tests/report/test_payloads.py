"""Every page that we write, full of hostile texts, in a real browser: no script, no request.

After tensorflow/tensorboard#2208 (names of runs became HTML), mlflow/mlflow#10073 (a recipe's card
ran scripts) and jupyter/nbconvert#1820 (texts of a notebook did).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from browser import FLAGS, chromium

from vse_scale.data.shards import Caption, ImageRecord
from vse_scale.interchange.card import model_card, origin_of_run
from vse_scale.report import PoolingCurve, build_report, illustrate, pick_examples
from vse_scale.report.compare import compare_runs
from vse_scale.report.examples import Failures, pick_failures
from vse_scale.retrieval.index import Hit, Index
from vse_scale.retrieval.page import write_page
from vse_scale.run.records import EvaluationRecord
from vse_shards.build import BuildOptions, build
from vse_shards.preview import write_preview
from vse_shards.sources.jsonl import JsonlSource

# {n} is the payload's number: a live one asks for /hit/{n}.
SCRIPT = "new Image().src='/hit/{n}'"
LIVE = [
    f"<script>{SCRIPT}</script>",
    f"</title><script>{SCRIPT}</script>",
    f"</style></script><script>{SCRIPT}</script>",
    f"--><script>{SCRIPT}</script>",
    f"</p></li></figcaption></td></svg></text><script>{SCRIPT}</script>",
    f'"><script>{SCRIPT}</script>',
    f"'><script>{SCRIPT}</script>",
    f'" onload="{SCRIPT}" x="',
    f'<img src=data:, onerror="{SCRIPT}">',
    f'<svg onload="{SCRIPT}">',
    f'<details open ontoggle="{SCRIPT}">',
    f'<input autofocus onfocus="{SCRIPT}">',
    f'<iframe srcdoc="<script>{SCRIPT}</script>"></iframe>',
    "<img src=/hit/{n}>",
    "<iframe src=/hit/{n}></iframe>",
    "<link rel=stylesheet href=/hit/{n}>",
    "<style>@import url(/hit/{n})</style>",
    "<p style='background:url(/hit/{n})'>x</p>",
    "<meta http-equiv=refresh content='0;url=/hit/{n}'>",
    "<object data=/hit/{n}></object>",
    "<embed src=/hit/{n}>",
    "<video src=/hit/{n} autoplay></video>",
    "<svg><image href=/hit/{n} width=9 height=9 /></svg>",
]
# Of a template, of Markdown, of another encoding: what a second reading would make live.
LATER = [
    f'<svg><style onload="{SCRIPT}"></style></svg>',
    f'<iframe src="javascript:{SCRIPT}"></iframe>',  # its own page, at times too late
    "$script ${{script}} $body", "{{script}} {{0.__class__}}",
    f"&lt;script&gt;{SCRIPT}&lt;/script&gt;", f"&#60;script&#62;{SCRIPT}&#60;/script&#62;",
    "![x](/hit/{n})", "[x]: /hit/{n}\n![x]", f"`<script>{SCRIPT}</script>`",
    f"``` x\n```\n<script>{SCRIPT}</script>", f"| <script>{SCRIPT}</script> |",
    f"\\<script>{SCRIPT}</script>", f"a\n\n<script>{SCRIPT}</script>\n\nb",
    f"\u2028<script>{SCRIPT}</script>", f"<scr\0ipt>{SCRIPT}</scr\0ipt>",
]  # fmt: skip
PAYLOADS = [text.format(n=number) for number, text in enumerate(LIVE + LATER)]


class Server(ThreadingHTTPServer):
    """Serves a folder; ``asked`` has the path of each request, and who made it."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[tuple[str, str]] = []
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))

    def handle_error(self, *_: Any) -> None:
        """Say nothing: the browser hangs up on answers that it no longer needs."""


class _Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        page = self.headers.get("Referer", "").rpartition("/")[2]
        self.server.asked.append((self.path, page))
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Any]:
    """Open pages in a browser; return the requests beyond those for the pages themselves."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def run(pages: list[Path]) -> list[tuple[str, str]]:
        names = [f"{number}.html" for number in range(len(pages))]
        for name, page in zip(names, pages, strict=True):
            shutil.copy(page, folder / name)
        frames = "".join(f'<iframe src="{name}" width=1200 height=900></iframe>' for name in names)
        (folder / "frames.html").write_text(frames)
        server.asked.clear()
        own = {f"/{name}" for name in (*names, "frames.html")}
        done = subprocess.run(
            [chromium(), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
             f"http://127.0.0.1:{server.server_port}/frames.html"],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert "iframe" in done.stdout, done.stderr[-2000:]
        assert own <= {path for path, _ in server.asked}  # every page was opened
        return [one for one in server.asked if one[0] not in own | {"/favicon.ico"}]

    yield run
    server.shutdown()
    thread.join()
    server.server_close()


class Hostile:
    """A dataset with a payload in every text, for the report's fixtures."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def image_bytes(self, image: int) -> Any:
        return self._dataset.image_bytes(image)

    def record(self, image: int) -> ImageRecord:
        found = self._dataset.record(image)
        texts = [PAYLOADS[(2 * image + side) % len(PAYLOADS)] for side in (0, 1)]
        captions = [Caption(number, text) for number, text in enumerate(texts)]
        return ImageRecord(texts[0], captions, found.width, found.height)


def hostile_run(run: Path) -> dict[str, Any]:
    """Put payloads into each text of a run's records; return its configuration."""
    payloads = iter(PAYLOADS * 9)

    def spoiled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoiled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [spoiled(inner) for inner in value]
        return next(payloads) if isinstance(value, str) else value

    config = spoiled(yaml.safe_load((run / "config.yaml").read_text()))
    config["model"]["text"]["path"] = next(payloads)
    config |= {text: text for text in PAYLOADS}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    system = spoiled(json.loads((run / "system.json").read_text()))
    system["packages"] |= {text: text for text in PAYLOADS}
    (run / "system.json").write_text(json.dumps(system))
    for name in ("metrics.jsonl", "evaluations.jsonl", "results.json"):
        lines = (run / name).read_text().splitlines()
        (run / name).write_text("".join(json.dumps(spoiled(json.loads(x))) + "\n" for x in lines))
    return config


def reports(run: Path, embeddings: Any, dataset: Any) -> list[Path]:
    named = run.with_name("<img src=x onerror=\"new Image().src='hit'\">")
    hostile_run(run)
    shutil.copytree(run, named)
    hostile = Hostile(dataset)
    picks, total, queries = pick_failures(embeddings, most=20)
    page = build_report(
        named,
        examples=illustrate(pick_examples(embeddings), embeddings, hostile),
        failures=Failures(illustrate(picks, embeddings, hostile, 120), total, queries),
        pooling=[PoolingCurve(text, text, (0.5, 0.3, 0.2)) for text in PAYLOADS[:2]],
    )
    compared = run.with_name("compared")
    compared.mkdir()
    return [page, compare_runs(run, named, compared / "page.html")]


def built(folder: Path) -> Path:
    """Build a dataset whose ids and captions are payloads."""
    from PIL import Image

    folder.mkdir()
    rows = []
    for number, text in enumerate(PAYLOADS):
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(folder / f"{number}.png")
        id_ = "".join(c for c in text if c.isprintable())
        rows.append({"image": f"{number}.png", "image_id": id_, "captions": [text, f"{text}."]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "<img src=x onerror=\"new Image().src='hit'\">"
    build(JsonlSource(str(folder / "rows.jsonl"), str(folder)), str(out), BuildOptions(workers=1))
    return out


class HostileIndex(Index):
    """An index of a hostile name, all of whose hits have the same picture."""

    def __init__(self, folder: Path, picture: bytes) -> None:
        self.folder, self._picture = folder, picture

    def picture(self, side: Any, hit: Hit) -> bytes | None:
        return self._picture


def cards(run: Path, small_model: Any) -> str:
    """Return a model card of a hostile run, as a hub renders its Markdown."""
    markdown = pytest.importorskip("markdown")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"optim": {"lr": PAYLOADS[8], "weight_decay": PAYLOADS, "schedule": "steps"}}
    texts = []
    for payload in PAYLOADS:
        config["data"] |= {"path": [payload, payload], "split": payload, "mode": payload}
        config["model"]["init_from"] = payload
        results = EvaluationRecord.from_json(
            json.loads((run / "results.json").read_text()) | {"split": payload}
        )
        origin = origin_of_run(config)
        card = model_card(small_model, name=payload, license=payload, origin=origin,
                          results=results)  # fmt: skip
        head, front, body = card.split("---\n", 2)
        assert (head, yaml.safe_load(front)["license"]) == ("", payload.lower())
        texts.append(body)
    return markdown.markdown("\n\n".join(texts), extensions=["tables", "fenced_code"])


@pytest.mark.slow
def test_no_script_runs_and_no_request_leaves(
    run, embeddings, dataset, small_model, asked, tmp_path
):
    pages = reports(run, embeddings, dataset)
    data = built(tmp_path / "data")
    preview = tmp_path / "preview" / "page.html"
    write_preview(data, preview)
    search = tmp_path / "search" / "page.html"
    picture = (tmp_path / "data" / "0.png").read_bytes()
    hits = [Hit(number, text, text, 0.5) for number, text in enumerate(PAYLOADS)]
    index = HostileIndex(data, picture)
    search.parent.mkdir()
    write_page(search, index, "images", [(hit.text, picture, [hit]) for hit in hits])
    card = tmp_path / "card" / "page.html"
    card.parent.mkdir()
    card.write_text(cards(run, small_model), "utf-8")
    pages += [preview, search, card]
    for page in pages:  # nobody left the payloads out instead of escaping them
        assert page.read_text("utf-8").count("/hit/") >= len(PAYLOADS) // 2, page
    assert asked(pages) == []


@pytest.mark.slow
def test_the_payloads_are_live(asked, tmp_path):
    """Where they are not escaped, each is a request; so the test above can fail."""
    pages = []
    for number, text in enumerate(PAYLOADS[: len(LIVE)]):
        page = tmp_path / str(number) / "page.html"
        page.parent.mkdir()
        page.write_text(f'<p>{text}</p><img src="/{page.parent.name}.png" alt="{text}"><b></b>')
        pages.append(page)
        from PIL import Image

        Image.new("RGB", (4, 4)).save(tmp_path / "served" / f"{number}.png")
    hit = {path for path, _ in asked(pages)}
    assert {f"/hit/{number}" for number in range(len(LIVE))} - hit == set()
