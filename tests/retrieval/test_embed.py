from __future__ import annotations

import io
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import installed
from PIL import Image
from ranks import environment_without_launcher, run_ranks
from warm import WarmGroup, vse_scale

from vse_scale.data.shards import ShardDataset
from vse_scale.errors import DatasetError, OutputError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.retrieval.embed import embed
from vse_scale.retrieval.encode import encode_split
from vse_scale.retrieval.encoder import Encoder
from vse_scale.retrieval.saved import ensemble, open_embeddings
from vse_scale.retrieval.sources import (
    DatasetCaptions,
    DatasetImages,
    FolderImages,
    Part,
    TextLines,
)
from vse_scale.world.processes import ALONE
from vse_shards.images import IMAGE_SUFFIXES, ImageOptions, check_image


@pytest.fixture(scope="module")
def encoder(model_folder):
    model = VSEModel.from_pretrained(model_folder)
    return Encoder(model, CaptionTokenizer.load(model_folder), torch.device("cpu"), 16, 1)


def silent(*_):
    pass


class Numbers:
    """Row i holds i; every seventh item has no embedding."""

    def __init__(self, items: int, fail_at: int | None = None) -> None:
        self.items, self.fail_at, self.asked = items, fail_at, []

    def __len__(self):
        return self.items

    def fingerprint(self):
        return "numbers"

    def embed(self, start, stop):
        if self.fail_at is not None and start >= self.fail_at:
            raise KeyboardInterrupt
        self.asked.append(start)
        kept = [n for n in range(start, stop) if n % 7]
        lines = [{"id": n} for n in kept]
        aside = [{"id": n, "reason": "seven"} for n in range(start, stop) if n % 7 == 0]
        return Part(np.array(kept, np.float32)[:, None] * np.ones((1, 3), np.float32), lines, aside)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def run(out, side, **options):
    described = {"model": "m"} | options.pop("described", {})
    chosen = {"batch": 2, "processes": ALONE, "progress": silent} | options
    return embed({"images": side}, out, described, **chosen)


def test_rows_are_in_the_order_of_the_items(tmp_path):
    counts = run(tmp_path / "out", Numbers(100))
    kept = [n for n in range(100) if n % 7]
    rows = np.load(tmp_path / "out" / "images.npy")
    assert rows[:, 0].tolist() == kept
    assert rows.dtype == np.float32
    lines = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").open()]
    assert [line["id"] for line in lines] == kept
    assert counts == {"images": {"embedded": len(kept), "set_aside": 100 - len(kept)}}
    assert sorted(contents(tmp_path / "out")) == [
        "images.jsonl", "images.npy", "images.set-aside.jsonl", "index.json",
    ]  # fmt: skip


def test_what_was_broken_off_goes_on_with_what_is_missing(tmp_path):
    run(tmp_path / "whole", Numbers(200))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", Numbers(200, fail_at=96))
    rest = Numbers(200)
    run(tmp_path / "out", rest)
    assert rest.asked == [96, 128, 160, 192]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    again = Numbers(200)
    run(tmp_path / "out", again)
    assert again.asked == []


def test_a_process_may_open_few_files_however_many_parts_there_are(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 30, limits[1]))
    try:
        counts = run(tmp_path / "out", Numbers(3200))  # 100 parts
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert counts["images"]["embedded"] == sum(1 for n in range(3200) if n % 7)
    assert np.load(tmp_path / "out" / "images.npy")[-1, 0] == 3198  # 3199 is a seventh


@pytest.mark.parametrize(("then", "now"), [({"dim": 64}, {}), ({}, {"dim": 64})])
def test_other_dimensions_are_refused_by_name(tmp_path, then, now):
    run(tmp_path / "out", Numbers(20), described=then)
    with pytest.raises(OutputError, match="was begun with another dim; go on with the same"):
        run(tmp_path / "out", Numbers(20), described=now)
    run(tmp_path / "out", Numbers(20), described=then)


@pytest.mark.parametrize("changed", ["batch", "model"])
def test_another_model_or_batch_is_refused(tmp_path, changed):
    run(tmp_path / "out", Numbers(20))
    options = {"batch": 4} if changed == "batch" else {"described": {"model": "other"}}
    with pytest.raises(OutputError, match=f"was begun with another {changed}"):
        run(tmp_path / "out", Numbers(20), **options)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="holds something else"):
        run(tmp_path, Numbers(20))
    assert contents(tmp_path) == {"mine.txt": b"x"}


def test_a_split_is_embedded_as_evaluation_does(encoder, scenes, tmp_path):
    dataset = ShardDataset(scenes, "val")
    sides = {
        "images": DatasetImages(encoder, dataset),
        "captions": DatasetCaptions(encoder, dataset),
    }
    embed(sides, tmp_path / "out", {}, batch=16, processes=ALONE, progress=silent)
    found = open_embeddings(tmp_path / "out")
    expected = encode_split(
        encoder.model, encoder.tokenizer, dataset, batch=16, device="cpu", threads=1
    )
    assert torch.equal(found.images, expected.images)  # the same batches
    torch.testing.assert_close(found.captions, expected.captions, rtol=0, atol=1e-6)
    assert torch.equal(found.caption_to_image, expected.caption_to_image)
    assert found.image_ids == expected.image_ids
    assert found.caption_ids == expected.caption_ids


def test_captions_across_parts(encoder, scenes):
    side = DatasetCaptions(encoder, ShardDataset(scenes, "val"))
    whole = side.embed(0, len(side)).lines
    assert [*side.embed(0, 7).lines, *side.embed(7, 13).lines, *side.embed(13, 100).lines] == whole
    assert [line["image"] for line in whole] == [n // 5 for n in range(100)]


def test_a_folder_of_images(encoder, scenes, tmp_path):
    photos = tmp_path / "photos"
    (photos / "below").mkdir(parents=True)
    dataset = ShardDataset(scenes, "val")
    (photos / "b.jpg").write_bytes(bytes(dataset.image_bytes(0)))
    (photos / "below" / "a.JPEG").write_bytes(bytes(dataset.image_bytes(1)))
    (photos / "broken.jpg").write_bytes(bytes(dataset.image_bytes(2))[:-200])
    (photos / "text.png").write_text("no image")
    (photos / "notes.txt").write_text("not looked at")
    Image.new("L", (40, 30), 90).save(photos / "grey.png")
    Image.new("RGB", (40, 30), (9, 8, 7)).save(photos / "plain.ppm")
    part = FolderImages(encoder, photos).embed(0, 6)
    assert [line["id"] for line in part.lines] == [
        "b.jpg", "below/a.JPEG", "grey.png", "plain.ppm",
    ]  # fmt: skip
    assert [line["id"] for line in part.set_aside] == ["broken.jpg", "text.png"]
    expected = encoder.images(dataset, [0, 1])
    torch.testing.assert_close(torch.from_numpy(part.embeddings[:2]), expected, rtol=0, atol=1e-6)


def test_every_suffix_is_decoded():
    Image.init()
    # The plugins of these may not be there.
    for suffix in IMAGE_SUFFIXES - {".heic", ".heif", ".hif", ".jxl"}:
        encoded = io.BytesIO()
        picture = Image.new("RGB", (40, 30), (9, 8, 7))
        picture.save(encoded, Image.EXTENSION.get(suffix, "JPEG2000"))
        assert check_image(encoded.getvalue(), ImageOptions()).width == 40


def test_a_file_of_texts(encoder, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("a red square\r\n\n  \na blue\u2028ring", encoding="utf-8", newline="")
    side = TextLines(encoder, file)
    assert len(side) == 4
    part = side.embed(0, 4)
    assert part.lines == [{"id": 1, "text": "a red square"}, {"id": 4, "text": "a blue\u2028ring"}]
    assert part.set_aside == [{"id": 2, "reason": "empty"}, {"id": 3, "reason": "empty"}]
    expected = encoder.texts(["a red square", "a blue\u2028ring"])
    assert torch.equal(torch.from_numpy(part.embeddings), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n", "holds no text"), (b"\xff\xfe", "no text in UTF-8"), (None, "cannot be read")],
)
def test_files_without_text(encoder, tmp_path, content, message):
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        TextLines(encoder, file)


@pytest.mark.parametrize("dim", [None, 8])
def test_a_part_of_which_nothing_can_be_embedded_joins_the_rest(model_folder, tmp_path, dim):
    model = VSEModel.from_pretrained(model_folder)
    model.output_dim = dim
    encoder = Encoder(model, CaptionTokenizer.load(model_folder), torch.device("cpu"), 1, 1)
    lines = [*["a red square"] * 16, *[""] * 16, "a ring"]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(16):
        (photos / f"a{number:02d}.jpg").write_text("no image")
    Image.new("RGB", (40, 30), (9, 8, 7)).save(photos / "b.png")
    sides = {
        "captions": TextLines(encoder, tmp_path / "texts.txt"),
        "images": FolderImages(encoder, photos),
    }
    counts = embed(sides, tmp_path / "out", {}, batch=1, processes=ALONE, progress=silent)
    assert counts["captions"] == {"embedded": 17, "set_aside": 16}
    assert counts["images"] == {"embedded": 1, "set_aside": 16}
    assert np.load(tmp_path / "out" / "captions.npy").shape == (17, dim or 24)
    assert np.load(tmp_path / "out" / "images.npy").shape == (1, dim or 24)


def test_nothing_but_broken_images(encoder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("no image")
    with pytest.raises(DatasetError, match=r"none of the images could be embedded.*a\.jpg"):
        embed(
            {"images": FolderImages(encoder, photos)}, tmp_path / "out", {},
            batch=2, processes=ALONE, progress=silent,
        )  # fmt: skip


def test_an_ensemble_adds_the_similarities(encoder, scenes, tmp_path):
    dataset = ShardDataset(scenes, "val")
    sides = {
        "images": DatasetImages(encoder, dataset),
        "captions": DatasetCaptions(encoder, dataset),
    }
    for name in ("a", "b"):
        embed(sides, tmp_path / name, {}, batch=16, processes=ALONE, progress=silent)
    rng = np.random.default_rng(0)
    other = {side: rng.standard_normal((n, 7)).astype(np.float32) for side, n in
             (("images", 20), ("captions", 100))}  # fmt: skip
    for side, rows in other.items():
        np.save(tmp_path / "b" / f"{side}.npy", rows)
    first = open_embeddings(tmp_path / "a")
    both = ensemble([(tmp_path / "a", 0.25), (tmp_path / "b", 2.0)])
    expected = 0.25 * first.images.double() @ first.captions.double().T
    expected += 2.0 * torch.from_numpy(other["images"] @ other["captions"].T).double()
    found = both.images.double() @ both.captions.double().T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    lines = (tmp_path / "b" / "captions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b" / "captions.jsonl").write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(DatasetError, match=r"caption ids are not those of .* from number 0 on"):
        ensemble([(tmp_path / "a", 1.0), (tmp_path / "b", 1.0)])


def command(model_folder, scenes, out):
    return [
        *("embed", "--model", model_folder),
        *("--data", scenes, "--split", "val", "--batch", "1", "--threads", "1"),
        *("--out", out),
    ]


@pytest.mark.slow
def test_killed_and_started_again_it_writes_the_same_bytes(model_folder, scenes, tmp_path):
    whole = tmp_path / "whole"
    assert vse_scale(*command(model_folder, scenes, whole)).returncode == 0
    for kills, parts in enumerate((1, 5)):  # of 2 of images and 7 of captions
        out = tmp_path / f"out{kills}"
        asked = command(model_folder, scenes, out)
        started = [installed("vse-scale"), *asked]
        with WarmGroup(started, environment_without_launcher(), tmp_path / "log") as killed:
            assert killed.wait_for(lambda: len(list(out.glob(".parts/*.jsonl"))) >= parts, 300)  # noqa: B023
        assert not (out / "captions.npy").exists()
        assert vse_scale(*asked).returncode == 0
        assert contents(out) == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_write_the_same_bytes(model_folder, scenes, tmp_path, ranks):
    assert vse_scale(*command(model_folder, scenes, tmp_path / "alone")).returncode == 0
    asked = command(model_folder, scenes, tmp_path / "out")
    said = run_ranks(ranks, installed("vse-scale"), *asked, start=WarmGroup)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert [(one.out + one.err).count("embeddings: ") for one in said] == [1] + [0] * (ranks - 1)


@pytest.mark.slow
def test_the_command_of_a_folder(model_folder, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_text("no image")
    done = vse_scale(
        "embed", "--model", model_folder, "--images", tmp_path / "photos", "--out", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    assert "images: 1 embedded, 1 set aside" in done.stdout
