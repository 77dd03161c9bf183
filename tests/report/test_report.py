from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from vse_scale.data.shards import ShardDataset
from vse_scale.errors import OutputError
from vse_scale.report import build_report, illustrate, pick_examples
from vse_scale.report.examples import Failures, pick_failures
from vse_scale.retrieval.encode import Embeddings

VOID = {"meta", "img", "br", "link", "input"}


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
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag, style=""):
        found = [a for t, a in self.elements if t == tag]
        return [a for a in found if not style or style in a.get("class", "").split()]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def test_page_is_whole_and_needs_nothing_else(full_report):
    html = full_report.read_text()
    page = Page(html)
    without_pictures = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script [^>]|<link", without_pictures)
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


def test_twelve_examples_both_ways_and_the_failures(full_report):
    html = full_report.read_text()
    examples, failures = html.split('id="failures"')
    page = Page(examples.split('id="examples"')[1].rsplit("</section>", 1)[0])
    assert len(page.all("article", "i2t")) == len(page.all("article", "t2i")) == 6
    shown = Page('<section id="failures"' + failures.split("</section>")[0] + "</section>")
    assert len(shown.all("article", "example")) == 30
    ranks = [int(card["data-rank"]) for card in shown.all("article", "example")]
    assert ranks == sorted(ranks, reverse=True)
    assert min(ranks) > 1


def test_panels_of_validations_and_machine(full_report):
    html = full_report.read_text()
    words = Page(html).words
    assert "Recalls, image to text" in words
    assert "Similarities in training" in words
    assert "epoch 1" in words
    assert "Some <CPU>" in words
    assert "A GPU, 80.0 GB" in words
    assert "processes 2" in words
    assert "torch 2.13.0" in words
    median = re.search(r"median is ([\d.]+) with the own image and ([\d.]+) with the hardest", html)
    assert [float(m) for m in median.groups()] == pytest.approx([0.9, 0.5], abs=0.011)
    # The pooling by epoch: the first position's weight rose from a quarter to three.
    assert "at the largest value: epoch 1 0.250, epoch 3 0.750" in html
    for way, share in (("positive", 5.0), ("negative", 1.0)):
        outline = re.search(rf'class="line {way}" d="M([^"]+)"', html.split('id="separation"')[1])[
            1
        ]
        levels = {float(point.split()[1]) for point in outline.split("L")}
        top = 5.0 * 1.08
        assert min(levels) == pytest.approx(100 - 100 * share / top, abs=0.01)


def test_examples_hold_the_truth(embeddings):
    owners = embeddings.caption_to_image.numpy()
    scores = (embeddings.images @ embeddings.captions.T).numpy()
    picks = pick_examples(embeddings)
    for way in ("i2t", "t2i"):
        own = [pick for pick in picks if pick.direction == way]
        ranks = []
        for query in range(40 if way == "i2t" else 80):
            row = scores[query] if way == "i2t" else scores[:, query]
            positive = owners == query if way == "i2t" else np.arange(40) == owners[query]
            ranks.append(1 + int((row[~positive] >= row[positive].max()).sum()))
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


def test_failures_are_the_worst_and_are_counted(embeddings):
    owners = embeddings.caption_to_image.numpy()
    scores = (embeddings.images @ embeddings.captions.T).numpy()
    picks, total, queries = pick_failures(embeddings, most=10)
    assert queries == {"i2t": 40, "t2i": 80}
    for way in ("i2t", "t2i"):
        ranks = []
        for query in range(queries[way]):
            row = scores[query] if way == "i2t" else scores[:, query]
            positive = owners == query if way == "i2t" else np.arange(40) == owners[query]
            ranks.append(1 + int((row[~positive] >= row[positive].max()).sum()))
        assert total[way] == sum(rank > 1 for rank in ranks)
        own = [pick for pick in picks if pick.direction == way]
        assert [pick.rank for pick in own] == sorted(ranks, reverse=True)[:10]
        assert all(ranks[pick.query] == pick.rank for pick in own)


def test_a_report_with_every_failure_card_is_below_2_mb(run, scenes):
    dataset = ShardDataset(scenes, "train")
    rng = np.random.default_rng(0)
    images, captions = (
        torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((count, 8))))
        for count in (len(dataset), 5 * len(dataset))
    )
    owners = torch.arange(len(dataset)).repeat_interleave(5)
    names = tuple(range(len(dataset))), tuple(range(5 * len(dataset)))
    embeddings = Embeddings(images.float(), captions.float(), owners, *names)
    picks, total, queries = pick_failures(embeddings)
    assert len(picks) == 96
    failures = Failures(illustrate(picks, embeddings, dataset, 120), total, queries)
    examples = illustrate(pick_examples(embeddings), embeddings, dataset)
    assert build_report(run, examples=examples, failures=failures).stat().st_size < 2e6


def test_a_model_without_failures_has_none():
    eye = torch.eye(3)
    small = Embeddings(eye, eye, torch.arange(3), (0, 1, 2), (0, 1, 2))
    assert pick_failures(small) == ([], {"i2t": 0, "t2i": 0}, {"i2t": 3, "t2i": 3})


def test_examples_show_what_was_missed(embeddings, dataset):
    picks = pick_examples(embeddings)
    examples = illustrate(picks, embeddings, dataset)
    for pick, example in zip(picks, examples, strict=True):
        assert (example.missed is None) == any(pick.right)
        owner = pick.query
        if pick.direction == "t2i":
            owner = int(embeddings.caption_to_image[pick.query])
        caption = 0 if pick.direction == "i2t" else pick.query % 2
        assert example.query.text == f"caption {caption} of <image {owner}>"
        assert (example.query.picture is None) == (pick.direction == "t2i")
        if example.missed:
            assert f"<image {owner}>" in example.missed.item.text


def test_thumbnails_are_small_and_keep_their_shape(embeddings, dataset):
    examples = illustrate(pick_examples(embeddings), embeddings, dataset)
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
        (["system.json"], "The run folder holds no system.json."),
        (["evaluations.jsonl"], "No similarities were recorded"),
        (["evaluations.jsonl"], "No model was at hand to read the pooling weights from."),
    ],
)
def test_what_is_missing_is_said(run, missing, sentence):
    for name in missing:
        (run / name).unlink()
    page = Page(build_report(run).read_text())
    assert sentence in page.words
    assert "No retrieval examples were made" in page.words


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
