"""``vse-scale eval`` on saved embeddings, by one process and by several."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from commandline import installed
from ranks import run_ranks
from warm import WarmGroup, vse_scale


def save(folder, rows, images, captions):
    folder.mkdir()
    np.save(folder / "images.npy", images.astype(np.float32))
    np.save(folder / "captions.npy", captions.astype(np.float32))
    image_lines = [json.dumps({"id": row["image_id"]}) + "\n" for row in rows]
    (folder / "images.jsonl").write_text("".join(image_lines))
    caption_lines = [
        json.dumps({"id": name, "text": "", "image": image}) + "\n"
        for image, row in enumerate(rows)
        for name in row["caption_ids"]
    ]
    (folder / "captions.jsonl").write_text("".join(caption_lines))
    return folder


@pytest.fixture(scope="module")
def rows(shared):
    text = (shared / "data" / "coco_karpathy_test_text" / "captions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def coco(rows, tmp_path_factory):
    """COCO's test set with drawn embeddings; each caption resembles its image."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((5000, 16))
    captions = images.repeat(5, axis=0) + 0.7 * rng.standard_normal((25000, 16))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, captions)]
    return save(tmp_path_factory.mktemp("coco") / "drawn", rows, *unit)


def evaluate(ranks, folder, out, *options):
    """Run the command in ``ranks`` processes; return what the main one printed, and its JSON."""
    command = [installed("vse-scale"), "eval", "--embeddings", folder, *options, "--json", out]
    said = run_ranks(ranks, *command, start=WarmGroup)
    assert all(other.out == "" for other in said[1:])
    return said[0].out, json.loads(out.read_text())


@pytest.mark.slow
def test_several_processes_find_the_same(coco, shared, tmp_path):
    options = ["--protocol", "cxc", "--cxc", shared / "data" / "cxc" / "data"]
    options += ["--eccv", shared / "data" / "eccv"]
    alone = evaluate(1, coco, tmp_path / "1.json", *options)
    assert alone[1]["queries"] == {"i2t": 5000, "t2i": 25000, "t2t": 25000, "i2i": 4791}
    assert set(alone[1]["correlations"]) == {"sits", "sis", "sts"}
    assert alone[1]["correlations"]["sits"]["mean"] > 20  # own pairs are rated high
    assert 0 < alone[1]["eccv"]["i2t"]["map_at_r"] < 100
    assert "Spearman" in alone[0]
    assert "mAP@R" in alone[0]
    assert evaluate(2, coco, tmp_path / "2.json", *options) == alone
    options = ["--protocol", "coco-5k"]
    alone = evaluate(1, coco, tmp_path / "1.json", *options)
    assert evaluate(3, coco, tmp_path / "3.json", *options) == alone


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_collapsed_model_ranks_last(rows, tmp_path, ranks):
    row = torch.nn.functional.normalize(torch.randn(48, generator=torch.manual_seed(1)), dim=0)
    same = row.numpy()[None]
    folder = save(tmp_path / "same", rows, same.repeat(5000, 0), same.repeat(25000, 0))
    _, found = evaluate(ranks, folder, tmp_path / "found.json", "--protocol", "coco-5k")
    assert found["rsum"] == 0
    assert found["i2t"]["mean_rank"] == 24996
    assert found["t2i"]["mean_rank"] == 5000


@pytest.mark.slow
def test_markdown_and_weights(coco, tmp_path):
    done = vse_scale(
        "eval", "--embeddings", f"{coco}=0.5", "--embeddings", f"{coco}=2", "--markdown",
        "--protocol", "coco-5k", "--json", tmp_path / "two.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].startswith("| ensemble of 2 | ")
    _, alone = evaluate(1, coco, tmp_path / "one.json", "--protocol", "coco-5k")
    both = json.loads((tmp_path / "two.json").read_text())
    assert both["rsum"] == pytest.approx(alone["rsum"], abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "val"], "none of --model, --embeddings and --similarities was given"),
        (["--model", "m", "--embeddings", "e", "--data", "d"], "--model and --embeddings"),
        (["--model", "m"], "--model needs --data"),
        (["--embeddings", "e", "--protocol", "cxc"], "--protocol cxc needs --cxc DIR"),
        (["--embeddings", "e", "--as-published"], "are of --protocol cxc, not of plain"),
        (["--similarities", "s", "--data", "d", "--eccv", "x"], "need --embeddings"),
        (["--embeddings", "e=0"], "its weight is 0; give one above 0"),
        (["--embeddings", "nowhere"], "nowhere: has no images.npy"),
        (["--embeddings", "nowhere", "--protocol", "coco"], "protocol 'coco' is not known"),
    ],
)
def test_options_that_do_not_fit(arguments, message, capsys, monkeypatch):
    from vse_scale import cli

    monkeypatch.setattr(sys, "argv", ["vse-scale", "eval", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(said) == 1
    assert message in said[0]
