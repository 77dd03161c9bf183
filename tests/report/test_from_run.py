from __future__ import annotations

import json

import pytest
import torch

from vse_scale.config import Config
from vse_scale.data.shards import ShardDataset
from vse_scale.evaluation import recall_at_k
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.report.from_run import pooling_curves, report_run
from vse_scale.retrieval.encode import encode_split
from vse_scale.retrieval.intervals import intervals
from vse_scale.retrieval.ranks import query_ranks
from vse_scale.retrieval.recorded import RecordedRanks
from vse_scale.run.folder import RunRecords
from vse_shards.build import BuildOptions, build
from vse_shards.demo import make_demo
from vse_shards.sources.jsonl import JsonlSource


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an untrained model and a dataset of 20 drawn validation scenes."""
    folder = tmp_path_factory.mktemp("run")
    make_demo(folder / "scenes", images=100)
    source = JsonlSource(str(folder / "scenes" / "captions.jsonl"), str(folder / "scenes"))
    build(source, str(folder / "shards"), BuildOptions())
    config = Config.parse(
        {
            "data": {"path": str(folder / "shards")},
            "run": {"dir": str(folder)},
            "model": {
                "embed_dim": 32,
                "image": {"backbone": "tiny", "size": 64},
                "text": {
                    "vocab_size": 200,
                    "architecture": {
                        "hidden_size": 32,
                        "num_hidden_layers": 1,
                        "num_attention_heads": 2,
                        "intermediate_size": 64,
                    },
                },
            },
        }
    )
    (folder / "config.yaml").write_text(config.to_yaml())
    train = ShardDataset(folder / "shards", "train")
    texts = [caption.text for row in range(len(train)) for caption in train.record(row).captions]
    tokenizer = CaptionTokenizer.train(texts, 200)
    torch.manual_seed(0)
    model = VSEModel(config.model, tokenizer.vocab_size, tokenizer.pad_id)
    model.save_pretrained(folder / "model", tokenizer=tokenizer)
    return folder


def encode(run, **options):
    return encode_split(
        VSEModel.from_pretrained(run / "model"),
        CaptionTokenizer.load(run / "model"),
        ShardDataset(run / "shards", "val"),
        device="cpu",
        threads=1,
        **options,
    )


def test_real_parts_encode_the_same_in_batches_of_any_size(run):
    found, whole = encode(run, batch=6), encode(run, batch=64)
    assert found.images.shape == (20, 32)
    assert found.captions.shape == (100, 32)
    torch.testing.assert_close(found.images, whole.images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.captions, whole.captions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.captions.norm(dim=1), torch.ones(100), rtol=0, atol=1e-5)


def test_report_of_a_run_with_its_model_and_dataset(run):
    embeddings = encode(run, batch=64)
    recalls = recall_at_k(embeddings.images, embeddings.captions, embeddings.caption_to_image)
    results = {**recalls.to_dict(), "split": "val", "step": 0}
    (run / "results.json").write_text(json.dumps(results))
    calls = []

    page = report_run(run, device="cpu", threads=1, progress=lambda *call: calls.append(call))

    html = page.read_text()
    assert page == run / "report.html"
    assert html.count("<article") > 12  # the examples, and what an untrained model fails at
    assert "Right pairs and hardest negatives" in html
    assert f"{recalls.rsum:.1f}" in html
    # The run recorded no intervals: they are those of its model's ranks.
    rows = (embeddings.images, embeddings.captions, embeddings.caption_to_image)
    low, high = intervals(query_ranks(*rows), embeddings.caption_to_image.numpy())["rsum"]
    assert f"That of RSUM: {low:.1f} to {high:.1f}." in html
    first = VSEModel.from_pretrained(run / "model")
    assert f"{first.grid_cells} cells" in html
    assert calls[-1] == ("captions", 100, 100)
    assert not (run / "ranks.json").exists()  # the run is not over

    (run / "results.json").write_text(json.dumps({**results, "steps": 1}))
    report_run(run, device="cpu", threads=1)
    found = RecordedRanks.of_run(RunRecords.load(run))
    assert (found.step, found.split) == (0, "val")
    assert found.ranks.recalls() == recalls


def test_a_run_without_an_evaluation_still_has_a_report(run, tmp_path):
    (tmp_path / "model").symlink_to(run / "model")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    html = report_run(tmp_path, device="cpu", threads=1).read_text()
    assert "No retrieval examples were made" in html


def test_pooling_curves_of_usual_lengths(run):
    model = VSEModel.from_pretrained(run / "model")
    curves = pooling_curves(model, [5] * 20 + [9] * 60 + [14] * 20)
    lengths = [(curve.side, len(curve.weights)) for curve in curves]
    assert lengths == [("image", model.grid_cells), ("text", 5), ("text", 9), ("text", 14)]
    assert all(sum(curve.weights) == pytest.approx(1, abs=1e-5) for curve in curves)
