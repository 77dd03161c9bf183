from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from warm import vse_scale

from vse_scale.commands.embed import embed as embed_command
from vse_scale.commands.eval import evaluate
from vse_scale.commands.search import search
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import ConfigError, DatasetError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.retrieval.embed import embed
from vse_scale.retrieval.encoder import Encoder
from vse_scale.retrieval.index import Index, embed_picture, embed_query
from vse_scale.retrieval.page import write_page
from vse_scale.retrieval.ranks import query_ranks
from vse_scale.retrieval.saved import open_embeddings
from vse_scale.retrieval.sources import DatasetCaptions, DatasetImages, TextLines
from vse_scale.world.processes import ALONE


@pytest.fixture(scope="module")
def encoder(model_folder):
    model = VSEModel.from_pretrained(model_folder)
    return Encoder(model, CaptionTokenizer.load(model_folder), torch.device("cpu"), 16, 1)


@pytest.fixture(scope="module")
def folder(encoder, model_folder, scenes, tmp_path_factory):
    dataset = ShardDataset(scenes, "val")
    sides = {
        "images": DatasetImages(encoder, dataset),
        "captions": DatasetCaptions(encoder, dataset),
    }
    out = tmp_path_factory.mktemp("index") / "scenes"
    described = {"model": str(model_folder), "source": {"data": str(scenes), "split": "val"}}
    embed(sides, out, described, batch=16, processes=ALONE, progress=lambda *_: None)
    return out


def test_every_caption_finds_its_scene_as_often_as_the_ranks_say(encoder, folder):
    saved = open_embeddings(folder)
    ranks = query_ranks(saved.images, saved.captions, saved.caption_to_image)
    lines = [json.loads(line) for line in (folder / "captions.jsonl").open()]
    queries = torch.cat([embed_query(encoder, line["text"]) for line in lines])
    side, found = Index(folder).search(queries, 10)
    assert side == "images"
    for k in (1, 5, 10):
        hits = sum(line["image"] in [hit.row for hit in hits[:k]]
                   for line, hits in zip(lines, found, strict=True))  # fmt: skip
        assert hits == int((ranks.t2i <= k).sum())


def test_a_picture_finds_itself(encoder, folder, scenes, tmp_path):
    dataset = ShardDataset(scenes, "val")
    (tmp_path / "query.jpg").write_bytes(bytes(dataset.image_bytes(7)))
    query = embed_picture(encoder, tmp_path / "query.jpg")
    _, (hits,) = Index(folder).search(query, 3)
    assert hits[0].id == dataset.record(7).image_id
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    side, (captions,) = Index(folder).search(query, 3, "captions")
    assert side == "captions"
    assert all(hit.text for hit in captions)


def test_answers_are_the_best_of_all(encoder, folder, monkeypatch):
    monkeypatch.setattr("vse_scale.retrieval.ranks._CANDIDATE_TILE", 7)
    query = embed_query(encoder, "a red square")
    _, (hits,) = Index(folder).search(query, 100, "captions")
    scores = np.load(folder / "captions.npy").astype(np.float64) @ query[0].double().numpy()
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)


class Checked(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.open, self.pictures, self.links = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            self.pictures.append(values["src"])
        self.links += [
            v for k, v in attributes if k in ("href", "src") and "data:" not in (v or "")
        ]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_all_that_it_shows(encoder, folder, tmp_path):
    index = Index(folder)
    text = "a <red> square & more"
    side, found = index.search(embed_query(encoder, text), 4)
    write_page(tmp_path / "page.html", index, side, [(text, None, found[0])])
    html = (tmp_path / "page.html").read_text()
    page = Checked(html)
    assert page.open == []
    assert len(page.pictures) == 4
    assert all(src.startswith("data:image/jpeg;base64,") for src in page.pictures)
    assert page.links == []
    assert "<h1>a &lt;red&gt; square &amp; more</h1>" in html
    assert f"<b>{found[0][0].score:.3f}</b>" in html


def test_an_index_whose_pictures_have_gone_still_answers(encoder, folder, scenes, tmp_path):
    index = tmp_path / "index"
    index.mkdir()
    for file in folder.iterdir():
        (index / file.name).write_bytes(file.read_bytes())
    described = json.loads((index / "index.json").read_text())
    described["source"]["data"] = str(tmp_path / "gone")
    (index / "index.json").write_text(json.dumps(described))
    opened = Index(index)
    side, found = opened.search(embed_query(encoder, "a ring"), 2)
    assert opened.picture(side, found[0][0]) is None
    write_page(tmp_path / "page.html", opened, side, [("a ring", None, found[0])])


def test_texts_alone(encoder, tmp_path):
    (tmp_path / "texts.txt").write_text("a red square\na blue ring\n")
    sides = {"captions": TextLines(encoder, tmp_path / "texts.txt")}
    described = {"model": "m", "source": {"texts": "t"}}
    embed(sides, tmp_path / "out", described, batch=2, processes=ALONE, progress=lambda *_: None)
    index = Index(tmp_path / "out")
    side, (hits,) = index.search(embed_query(encoder, "a blue ring"), 1)
    assert (side, hits[0].id, hits[0].text) == ("captions", 2, "a blue ring")
    with pytest.raises(ConfigError, match="holds captions, no images"):
        index.search(embed_query(encoder, "a blue ring"), 1, "images")


def test_queries_that_cannot_be_asked(encoder, tmp_path):
    with pytest.raises(ConfigError, match="the query is empty"):
        embed_query(encoder, " \n")
    with pytest.raises(ConfigError, match=r"has 10,000 words, 10,002 tokens, .* takes 64; shorten"):
        embed_query(encoder, "red " * 10_000)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ConfigError, match=r"text\.jpg: is no whole image"):
        embed_picture(encoder, tmp_path / "text.jpg")
    with pytest.raises(ConfigError, match="cannot be read"):
        embed_picture(encoder, tmp_path / "none.jpg")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "index.json").unlink(), r"is no index, index\.json cannot be read"),
        (lambda f: (f / "index.json").write_text("{"), "is damaged"),
        (lambda f: (f / "images.npy").unlink(), r"images\.npy is missing; run the same"),
        (lambda f: (f / "images.jsonl").unlink(), "cannot be read"),
        (lambda f: (f / "images.npy").write_bytes(b"junk"), r"no whole \.npy file"),
        (lambda f: np.save(f / "images.npy", np.ones((3, 24), np.float32)), "for 20 ids"),
        (lambda f: np.save(f / "images.npy", np.ones((20, 9), np.float32)), "queries of width 24"),
        (lambda f: (f / "images.npy").write_bytes((f / "images.npy").read_bytes()[:-64]), "whole"),
    ],
)
def test_damaged_indices_are_refused(encoder, folder, tmp_path, spoil, message):
    index = tmp_path / "index"
    index.mkdir()
    for file in folder.iterdir():
        (index / file.name).write_bytes(file.read_bytes())
    spoil(index)
    with pytest.raises(DatasetError, match=message) as error:
        Index(index).search(embed_query(encoder, "a ring"), 2)
    assert "\n" not in str(error.value)


def test_shorter_embeddings_are_embedded_searched_and_ranked(
    model_folder, folder, scenes, tmp_path, capsys
):
    """`--dim` cuts rows, which are of unit length again; an index knows how short its are."""
    cut = tmp_path / "cut"
    embed_command(model=model_folder, out=cut, data=str(scenes), split="val", dim=8)
    whole, short = open_embeddings(folder), open_embeddings(cut)
    for side in ("images", "captions"):
        expected = torch.nn.functional.normalize(getattr(whole, side)[:, :8], dim=1)
        torch.testing.assert_close(getattr(short, side), expected, rtol=0, atol=1e-6)
    capsys.readouterr()
    search(index=cut, queries=["a red square"], top=3)
    asked = VSEModel.from_pretrained(model_folder).embed(texts=["a red square"])[:, :8]
    scores = (short.images @ torch.nn.functional.normalize(asked, dim=1)[0]).sort().values
    first = capsys.readouterr().out.splitlines()[1].split()
    assert float(first[1]) == pytest.approx(float(scores[-1]), abs=6e-4)

    found = tmp_path / "found.json"
    evaluate(model=model_folder, data=str(scenes), split="val", dim=8, output=found)
    ranks = query_ranks(short.images, short.captions, short.caption_to_image)
    figures = json.loads(found.read_text())
    assert figures["t2i"]["r1"] == pytest.approx(float((ranks.t2i <= 1).double().mean() * 100))
    for call in (
        lambda: embed_command(
            model=model_folder, out=tmp_path / "more", data=str(scenes), split="val", dim=999
        ),
        lambda: evaluate(embeddings=[str(cut)], dim=8),
    ):
        with pytest.raises(ConfigError, match="--dim"):
            call()


def test_a_narrower_model_than_the_indexs_is_told_in_terms_of_search(
    model_folder, scenes, tmp_path
):
    """search has no --dim of its own to give fewer of."""
    own = VSEModel.from_pretrained(model_folder)
    config = replace(own.config, embed_dim=8)
    narrow = VSEModel(config, own.vocab_size, own.pad_id, own.input_spec.max_tokens)
    narrow.save_pretrained(tmp_path / "narrow", own.tokenizer)
    cut = tmp_path / "cut"
    embed_command(model=model_folder, out=cut, data=str(scenes), split="val", dim=16)
    with pytest.raises(ConfigError, match=r"other weights .*; embed again with this model, or"):
        search(index=cut, queries=["a ring"], model=tmp_path / "narrow")
    described = json.loads((cut / "index.json").read_text())
    del described["weights_sha256"]  # as in a folder of an earlier release
    (cut / "index.json").write_text(json.dumps(described))
    with pytest.raises(DatasetError, match=r"queries of width 8; embed again with this model"):
        search(index=cut, queries=["a ring"], model=tmp_path / "narrow")
    again = tmp_path / "again"
    embed_command(model=tmp_path / "narrow", out=again, data=str(scenes), split="val")
    search(index=again, queries=["a ring"], model=tmp_path / "narrow")


@pytest.mark.slow
def test_the_command(folder, tmp_path):
    done = vse_scale(
        "search", "--index", folder, "a red square", "a ring", "--top", "3",
        "--json", tmp_path / "found.json", "--html", tmp_path / "page.html",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [answer["query"] for answer in found] == ["a red square", "a ring"]
    lines = done.stdout.splitlines()
    assert lines[0] == "a red square"
    first = found[0]["hits"][0]
    assert lines[1].split() == ["1", f"{first['score']:.3f}", str(first["id"])]
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize("kind", ["above", "absolute", "linked"])
def test_an_index_shows_no_picture_outside_its_image_folder(kind, encoder, folder, tmp_path):
    """A stranger's index that names a picture of yours has it in no page."""
    (tmp_path / "own").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "own" / "passport.png")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "images" / "shown.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "own" / "passport.png")
    passport = {
        "above": "../own/passport.png", "absolute": str(tmp_path / "own/passport.png"),
        "linked": "link.png",
    }[kind]  # fmt: skip
    index = tmp_path / "index"
    index.mkdir()
    described = {"sides": ["images"], "model": "m", "source": {"images": str(tmp_path / "images")}}
    (index / "index.json").write_text(json.dumps(described))
    np.save(index / "images.npy", np.eye(2, 24, dtype=np.float32))
    lines = [json.dumps({"id": name}) + "\n" for name in ("shown.png", passport)]
    (index / "images.jsonl").write_text("".join(lines))
    opened = Index(index)
    _, [hits] = opened.search(embed_query(encoder, "a ring"), 2)
    found = {hit.row: opened.picture("images", hit) for hit in hits}
    assert found[0] == (tmp_path / "images" / "shown.png").read_bytes()
    assert found[1] is None
