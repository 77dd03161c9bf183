from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vse_scale.data.shards import Caption, ImageRecord
from vse_scale.errors import OutputError
from vse_scale.evaluation.encode import Embeddings
from vse_scale.report import PoolingCurve, build_report, illustrate, pick_examples

RECALLS = {
    "i2t": {"r1": 61.25, "r5": 83.5, "r10": 91.75, "median_rank": 1.0, "mean_rank": 4.375},
    "t2i": {"r1": 52.5, "r5": 78.125, "r10": 88.0, "median_rank": 1.0, "mean_rank": 7.75},
    "rsum": 455.125,
}
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what the tests look at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag, style=""):
        found = [a for t, a in self.elements if t == tag]
        return [a for a in found if not style or style in a.get("class", "").split()]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


class FakeDataset:
    """Images of one colour each, with two captions."""

    def image_bytes(self, image):
        buffer = io.BytesIO()
        Image.new("RGB", (320, 200 + image), (image * 6, 90, 120)).save(buffer, "JPEG")
        return np.frombuffer(buffer.getvalue(), dtype=np.uint8)

    def record(self, image):
        captions = [Caption(c, f"caption {c} of <image {image}>") for c in range(2)]
        return ImageRecord(f"id-{image}", captions, 320, 200 + image)


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(3)
    images = rng.standard_normal((40, 6)).astype(np.float32)
    owners = np.arange(40).repeat(2)
    captions = images[owners] + 1.5 * rng.standard_normal((80, 6)).astype(np.float32)
    images, captions = (
        torch.nn.functional.normalize(torch.from_numpy(x)) for x in (images, captions)
    )
    return Embeddings(
        images, captions, torch.from_numpy(owners), tuple(range(40)), tuple(range(80))
    )


def step_record(step, objective="hardest", rate=1e-3, loss=2.0):
    seconds = {"data": 0.01, "forward": 0.2, "objective": 0.03, "communication": 0.02}
    seconds |= {"backward": 0.5, "optimizer": 0.04, "step": 1.0}
    return {
        "step": step,
        "epoch": step // 10,
        "epoch_fraction": (step + 1) / 10,
        "objective": objective,
        "loss": loss,
        "learning_rate": {"heads": rate, "text": rate, "backbone": rate},
        "pairs_per_second": 64.0,
        "seconds": seconds,
    }


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "my-run"
    folder.mkdir()
    config = {
        "data": {"path": "data/<scenes>", "global_batch": 64},
        "model": {"image": {"backbone": "tiny", "size": 96}, "text": {"path": None}},
        "optim": {"lr": 0.001, "drop_epochs": [2]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    steps = [step_record(s, "all", loss=500.0 / (s + 1)) for s in range(10)]
    steps += [
        step_record(s, rate=1e-3 if s < 20 else 1e-4, loss=20.0 / (s - 9)) for s in range(10, 30)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    validations = [
        {"step": 9, "epoch": 0, "split": "val", **RECALLS, "rsum": 300.5, "seconds": 2.0},
        {"step": 29, "epoch": 2, "split": "val", **RECALLS, "seconds": 2.0},
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(v) + "\n" for v in validations))
    (folder / "results.json").write_text(json.dumps(validations[1]))
    return folder


@pytest.fixture
def full_report(run, embeddings):
    examples = illustrate(pick_examples(embeddings), embeddings, FakeDataset())
    pooling = [PoolingCurve("image", (0.5, 0.3, 0.2)), PoolingCurve("text", (0.25,) * 4)]
    return build_report(run, examples=examples, pooling=pooling)


def test_page_is_whole_and_needs_nothing_else(full_report):
    html = full_report.read_text()
    page = Page(html)
    without_pictures = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link", without_pictures)
    sources = [image["src"] for image in page.all("img")]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert all(image["alt"] for image in page.all("img"))
    assert {"lang"} <= set(page.all("html")[0])
    assert "width=device-width" in html
    assert "prefers-color-scheme: dark" in html
    assert all(header.get("scope") for header in page.all("th"))
    assert all(plot["aria-label"] for plot in page.all("div", "plot"))


def test_numbers_are_those_of_the_run(full_report):
    words = Page(full_report.read_text()).words
    assert "455.1" in words
    assert "image to text 61.2 83.5 91.8 1 4.4" in words
    assert "text to image 52.5 78.1 88.0 1 7.8" in words
    assert "30 steps, 3 epochs" in words
    assert "0:30 training time" in words
    for phase, share, milliseconds in (
        ("waiting for data", "1.0", "10.0"),
        ("backward", "50.0", "500.0"),
        ("other", "20.0", "200.0"),
    ):
        assert f"{phase} {share} % {milliseconds}" in words
    assert "all violating negatives (warm-up)" in words
    assert "learning rate × 0.1" in words
    assert "best, 455.1" in words
    assert "data/<scenes>" in words  # escaped, not a tag


def test_curves_pass_through_their_values(run):
    html = build_report(run).read_text()
    # RSUM 300.5 and 455.125 at steps 9 and 29 of an axis from 0 to 29, with 8 % of room.
    room = 0.08 * (455.125 - 300.5)
    low, high = 300.5 - room, 455.125 + room
    points = re.search(r'class="line rsum" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', html).groups()
    expected = [
        100 * 9 / 29,
        100 * (high - 300.5) / (high - low),
        100.0,
        100 * (high - 455.125) / (high - low),
    ]
    assert [float(point) for point in points] == pytest.approx(expected, abs=0.01)
    # The warm-up ends at step 9; the learning rate drops at step 20.
    band = re.search(r'class="band" x="([\d.]+)" y="0" width="([\d.]+)"', html).groups()
    assert [float(x) for x in band] == pytest.approx([0, 100 * 9 / 29], abs=0.01)
    marks = re.findall(r'class="mark" d="M([\d.]+) 0.00L', html)
    assert [float(x) for x in marks] == pytest.approx([100 * 20 / 29] * 2, abs=0.01)


def test_twelve_examples_both_ways(full_report):
    page = Page(full_report.read_text())
    cards = page.all("article", "example")
    assert len(cards) == 12
    assert len(page.all("article", "i2t")) == len(page.all("article", "t2i")) == 6
    assert len(page.all("article", "worst")) == 4


def test_examples_hold_the_truth(embeddings):
    owners = embeddings.caption_to_image.numpy()
    scores = (embeddings.images @ embeddings.captions.T).numpy()
    picks = pick_examples(embeddings)
    for way in ("i2t", "t2i"):
        own = [pick for pick in picks if pick.way == way]
        ranks = []
        for query in range(40 if way == "i2t" else 80):
            row = scores[query] if way == "i2t" else scores[:, query]
            positive = owners == query if way == "i2t" else np.arange(40) == owners[query]
            ranks.append(1 + int((row[~positive] >= row[positive].max()).sum()))
        worst = [pick for pick in own if pick.worst]
        assert worst[0].rank == max(ranks)
        assert worst[1].rank >= max(pick.rank for pick in own if not pick.worst)
        for pick in own:
            row = scores[pick.query] if way == "i2t" else scores[:, pick.query]
            positive = owners == pick.query if way == "i2t" else np.arange(40) == owners[pick.query]
            assert pick.rank == ranks[pick.query]
            assert list(pick.answers) == np.argsort(-row, kind="stable")[:5].tolist()
            assert list(pick.right) == positive[list(pick.answers)].tolist()
            assert pick.scores == pytest.approx(row[list(pick.answers)], abs=1e-5)
            assert pick.best_right == int(np.where(positive, row, -2).argmax())
            assert pick.best_right_score == pytest.approx(row[pick.best_right], abs=1e-5)
        images = [pick.query if way == "i2t" else owners[pick.query] for pick in own]
        assert len(set(images)) == 6
    assert pick_examples(embeddings) == picks
    assert pick_examples(embeddings, seed=1) != picks


def test_examples_show_what_was_missed(embeddings):
    picks = pick_examples(embeddings)
    examples = illustrate(picks, embeddings, FakeDataset())
    for pick, example in zip(picks, examples, strict=True):
        assert (example.missed is None) == any(pick.right)
        owner = pick.query if pick.way == "i2t" else int(embeddings.caption_to_image[pick.query])
        caption = 0 if pick.way == "i2t" else pick.query % 2
        assert example.query.text == f"caption {caption} of <image {owner}>"
        assert (example.query.picture is None) == (pick.way == "t2i")
        if example.missed:
            assert f"<image {owner}>" in example.missed.item.text


def test_thumbnails_are_small_and_keep_their_shape(embeddings):
    examples = illustrate(pick_examples(embeddings), embeddings, FakeDataset())
    picture = examples[0].query.picture
    with Image.open(io.BytesIO(base64.b64decode(picture.split(",", 1)[1]))) as image:
        owner = int(re.search(r"image (\d+)", examples[0].query.text)[1])
        assert image.width == 240
        assert image.height == pytest.approx(240 * (200 + owner) / 320, abs=1)


def test_a_small_split_gives_fewer_examples():
    eye = torch.eye(3)
    small = Embeddings(eye, eye, torch.arange(3), (0, 1, 2), (0, 1, 2))
    assert len(pick_examples(small)) == 6


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (["metrics.jsonl"], "No step was recorded yet, so there is no loss curve."),
        (["evaluations.jsonl"], "No validation was recorded, so there is no RSUM curve."),
        (["evaluations.jsonl", "results.json"], "Not evaluated: no epoch is over yet"),
        (["config.yaml"], "The run folder holds no config.yaml."),
    ],
)
def test_what_is_missing_is_said(run, missing, sentence):
    for name in missing:
        (run / name).unlink()
    page = Page(build_report(run).read_text())
    assert sentence in page.words
    assert "No retrieval examples were made" in page.words
    assert "No model was at hand" in page.words


def test_a_run_that_is_not_over_shows_its_best_validation(run):
    (run / "results.json").unlink()
    assert "455.1 RSUM of 600" in Page(build_report(run).read_text()).words


def test_a_line_cut_off_by_a_kill_is_left_out(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')
    assert "30 steps" in Page(build_report(run).read_text()).words


def test_a_folder_that_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(OutputError, match="no such run folder"):
        build_report(tmp_path / "nowhere")
    (run / "results.json").write_text("{")
    with pytest.raises(OutputError, match=r"results\.json: is damaged"):
        build_report(run)


@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it_without_sideways_scrolling(full_report, tmp_path, width):
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium, which is not installed")
    # A headless window has a least width, so the page is measured in a frame of the right width.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="{full_report.as_uri()}" style="width:{width}px;height:800px;border:0">'
        "</iframe><pre></pre><script>onload = () => { const page = frames[0].document; "
        "document.querySelector('pre').textContent = JSON.stringify({"
        "scroll: page.documentElement.scrollWidth, "
        "broken: [...page.images].filter(i => !i.naturalWidth).length, "
        "plots: [...page.querySelectorAll('.plot')].map(p => p.clientWidth)}) }</script>"
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", "--allow-file-access-from-files", "--window-size=1400,900"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000"]
    shown = subprocess.run(
        [*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = json.loads(re.search(r"<pre>(\{.*\})</pre>", shown.stdout)[1])
    assert found["scroll"] <= width
    assert found["broken"] == 0
    assert len(found["plots"]) == 4
    assert min(found["plots"]) > 200
