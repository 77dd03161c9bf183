"""The table of metrics: every row is in all that is printed, and an added row needs no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vse_scale.config import Config
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.metrics import DIRECTIONS, METRICS, DirectionRecalls, Metric, Recalls
from vse_scale.retrieval.protocols.folds import evaluate
from vse_scale.run.folder import RunFolder
from vse_scale.run.records import EvaluationRecord
from vse_scale.training.watch.prometheus import RunMetrics
from vse_scale.training.watch.tensorboard import TensorBoard

R20 = Metric("r20", "R@20", "percent", "higher", lambda r: 100.0 * float((r <= 20).mean()), k=20)
MRR = Metric("mrr", "MRR", "percent", "higher", lambda ranks: 100.0 * float((1.0 / ranks).mean()))


def gallery(images: int = 60) -> Embeddings:
    rng = np.random.default_rng(3)
    pictures = torch.from_numpy(rng.standard_normal((images, 8)).astype(np.float32))
    owners = torch.arange(images).repeat_interleave(2)
    noise = torch.from_numpy(rng.standard_normal((len(owners), 8)).astype(np.float32))
    unit = torch.nn.functional.normalize
    return Embeddings(
        unit(pictures, dim=1), unit(pictures[owners] + 1.5 * noise, dim=1), owners,
        tuple(range(images)), tuple(range(len(owners))),
    )  # fmt: skip


def own_ranks(embeddings: Embeddings) -> torch.Tensor:
    """The rank of every caption's image, by sorting."""
    scores = (embeddings.captions @ embeddings.images.T).numpy()
    order = np.argsort(-scores, axis=1, kind="stable")
    own = embeddings.caption_to_image.numpy()[:, None]
    return torch.from_numpy((order == own).argmax(1) + 1)


def test_figures_follow_their_definitions() -> None:
    way = DirectionRecalls.from_ranks(torch.tensor([1, 3, 6, 11]))
    assert way.to_dict() == {
        "r1": 25.0, "r5": 50.0, "r10": 75.0, "median_rank": 4.0, "mean_rank": 5.25,
    }  # fmt: skip
    assert Recalls(way, way).rsum == 300.0


@pytest.mark.parametrize("added", [(), (R20,), (MRR,)], ids=["none", "R@20", "MRR"])
def test_every_row_is_in_all_that_is_shown(
    added: tuple[Metric, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for metric in added:
        monkeypatch.setitem(METRICS, metric.name, metric)
    embeddings = gallery()
    found = evaluate("plain", embeddings)
    ranks = own_ranks(embeddings).numpy()
    lines = found.table().splitlines()
    heads, text_to_image = lines[2].split(), lines[4].removeprefix("text to image").split()
    markdown = found.markdown("mine").splitlines()
    names, cells = ([cell.strip() for cell in line.split("|")[2:-1]] for line in markdown[::2])
    half = len(names) // 2
    for name, metric in METRICS.items():
        expected = metric.compute(ranks)
        assert found.to_dict()["t2i"][name] == expected  # type: ignore[index]
        assert text_to_image[heads.index(metric.column)] == f"{expected:.1f}"
        if metric.unit == "percent":
            label = metric.label if metric.name != "r1" else "t→i R@1"
            assert cells[half + names[half:].index(label)] == f"{expected:.1f}"
    assert found.recalls.rsum <= 600  # an added metric is no term of it
    assert max(map(len, lines)) <= 80


def test_rsum_takes_the_rows_that_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "r20", replace(R20, in_rsum=True))
    way = DirectionRecalls.from_ranks(torch.tensor([1, 15]))
    assert Recalls(way, way).rsum == 2 * (3 * 50 + 100)


@pytest.mark.parametrize(
    ("metric", "sample", "labels"),
    [
        (R20, "vse_scale_recall_ratio", {"direction": "t2i", "k": "20"}),
        (MRR, "vse_scale_mrr_ratio", {"direction": "t2i"}),
    ],
    ids=["R@20", "MRR"],
)
def test_an_added_row_is_watched(
    metric: Metric,
    sample: str,
    labels: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(METRICS, metric.name, metric)
    way = DirectionRecalls.from_ranks(torch.tensor([2, 4, 40, 50]))
    record = EvaluationRecord.from_json({"step": 7, "seconds": 1.0, **Recalls(way, way).to_dict()})
    expected = {"r20": 0.5, "mrr": (1 / 2 + 1 / 4 + 1 / 40 + 1 / 50) / 4}[metric.name]

    registry = CollectorRegistry()
    RunMetrics(registry, total_steps=9, restarts=0).evaluation(record)
    assert registry.get_sample_value(sample, labels) == pytest.approx(expected)
    folder = RunFolder(tmp_path)
    board = TensorBoard(Config.model_construct(), folder, next_step=0, total_steps=9)
    board.evaluation(record)
    board.close()
    events = EventAccumulator(str(folder.tensorboard_folder))
    events.Reload()
    (event,) = events.Scalars(f"recall/i2t_{metric.name}")
    assert event.value == pytest.approx(100 * expected)


def test_directions_are_each_others_reverse() -> None:
    there, back = DIRECTIONS.values()
    assert (there.query, there.answer, there.queries) == (back.answer, back.query, back.answers)
