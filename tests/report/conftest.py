from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vse_scale.data.shards import Caption, ImageRecord
from vse_scale.report import PoolingCurve, build_report, illustrate, pick_examples
from vse_scale.report.examples import Failures, pick_failures
from vse_scale.retrieval.encode import Embeddings

RECALLS = {
    "i2t": {"r1": 61.25, "r5": 83.5, "r10": 91.75, "median_rank": 1.0, "mean_rank": 4.375},
    "t2i": {"r1": 52.5, "r5": 78.125, "r10": 88.0, "median_rank": 1.0, "mean_rank": 7.75},
    "rsum": 455.125,
}


class FakeDataset:
    """Images of one colour each, with two captions."""

    def image_bytes(self, image):
        buffer = io.BytesIO()
        Image.new("RGB", (320, 200 + image), (image * 6, 90, 120)).save(buffer, "JPEG")
        return np.frombuffer(buffer.getvalue(), dtype=np.uint8)

    def record(self, image):
        captions = [Caption(c, f"caption {c} of <image {image}>") for c in range(2)]
        return ImageRecord(f"id-{image}", captions, 320, 200 + image)


@pytest.fixture(scope="session")
def dataset():
    return FakeDataset()


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
        "positive_similarity": 0.5 + step / 100,
        "hardest_similarity": 0.5,
        "seconds": seconds,
    }


HISTOGRAMS = {"positive": [0] * 180 + [10] * 20, "hardest_negative": [0] * 100 + [2] * 100}
SYSTEM = {
    "ranks": 2,
    "processor": "Some <CPU>",
    "cores": 8,
    "memory_bytes": 16_000_000_000,
    "gpus": [{"name": "A GPU", "memory_bytes": 80_000_000_000}],
    "packages": {"torch": "2.13.0"},
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
    for record, first in zip(validations, (0.25, 0.75), strict=True):
        rest = [(1 - first) / 3] * 3
        record["pooling"] = {"image": [first, *rest], "text": [first, *rest]}
        record["similarities"] = HISTOGRAMS
    (folder / "system.json").write_text(json.dumps(SYSTEM))
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(v) + "\n" for v in validations))
    (folder / "results.json").write_text(json.dumps(validations[1]))
    return folder


@pytest.fixture
def failures(embeddings, dataset):
    picks, total, queries = pick_failures(embeddings, most=15)
    return Failures(illustrate(picks, embeddings, dataset, 120), total, queries)


@pytest.fixture
def full_report(run, embeddings, dataset, failures):
    examples = illustrate(pick_examples(embeddings), embeddings, dataset)
    pooling = [
        PoolingCurve("image", "cells", (0.5, 0.3, 0.2)),
        PoolingCurve("text", "tokens", (0.25,) * 4),
    ]
    return build_report(run, examples=examples, failures=failures, pooling=pooling)
