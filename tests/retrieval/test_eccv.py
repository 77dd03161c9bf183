from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vse_scale.errors import DatasetError
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.protocols.eccv import eccv_table, evaluate_eccv, retrieval_figures


def by_definition(ranked, right):
    """mAP@R, R-precision and R@1 of one ranking, after Musgrave et al. 2020."""
    count = len(right)
    hits = [item in right for item in ranked[:count]]
    average = sum(hit * sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits)) / count
    return average, sum(hits) / count, float(hits[0])


def test_figures_equal_their_definition():
    rng = np.random.default_rng(0)
    queries = torch.from_numpy(rng.standard_normal((150, 8)))
    candidates = torch.from_numpy(rng.standard_normal((60, 8)))
    right = [rng.choice(60, rng.integers(1, 20), replace=False).tolist() for _ in range(150)]
    found = retrieval_figures(queries, candidates, right, [len(a) for a in right])
    ranked = np.argsort(-(queries @ candidates.T).numpy(), axis=1).tolist()
    each = [by_definition(r, set(a)) for r, a in zip(ranked, right, strict=True)]
    expected = np.mean(each, axis=0)
    assert [found.map_at_r, found.r_precision, found.r1] == pytest.approx(100 * expected)
    assert found.queries == 150


def test_a_collapsed_model_gains_nothing():
    found = retrieval_figures(torch.ones(3, 4), torch.ones(20, 4), [[0, 1, 2]] * 3, [3] * 3)
    assert (found.map_at_r, found.r_precision, found.r1) == (0, 0, 0)


def published_code(ranked, answers):
    """As the authors' code computes it: answers that are not ranked count in R."""
    return np.mean([by_definition(ranked[query], set(a)) for query, a in answers.items()], axis=0)


def test_the_real_files(shared):
    folder = shared / "data" / "eccv"
    text = (shared / "data" / "coco_karpathy_test_text" / "captions.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    captions = [name for row in rows for name in row["caption_ids"]]
    owners = torch.tensor([image for image, row in enumerate(rows) for _ in row["caption_ids"]])
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.standard_normal((5000, 32)))
    words = images[owners] + torch.from_numpy(rng.standard_normal((len(owners), 32)))
    image_ids = [row["image_id"] for row in rows]
    embeddings = Embeddings(images, words, owners, tuple(image_ids), tuple(captions))
    found = evaluate_eccv(embeddings, folder)
    assert (found["i2t"].queries, found["t2i"].queries) == (1261, 1332)
    scores = (images @ words.T).numpy()
    for way, name, queries, items, own in (
        ("i2t", "eccv_image_to_caption", image_ids, captions, scores),
        ("t2i", "eccv_caption_to_image", captions, image_ids, scores.T),
    ):
        raw = json.loads((folder / f"{name}.json").read_text())
        answers = {int(query): [int(a) for a in found] for query, found in raw.items()}
        row = {query: number for number, query in enumerate(queries)}
        ranked = {q: np.array(items)[np.argsort(-own[row[q]])[:120]].tolist() for q in answers}
        figures = found[way]
        assert [figures.map_at_r, figures.r_precision, figures.r1] == pytest.approx(
            100 * published_code(ranked, answers)
        )
    table = eccv_table(found)
    assert f"{found['t2i'].map_at_r:.1f}" in table
    assert eccv_table(found, "ours").splitlines()[2].startswith("| ours |")


def test_wrong_files_are_named(tmp_path):
    eye = torch.eye(3)
    embeddings = Embeddings(eye, eye, torch.arange(3), (1, 2, 3), (10, 20, 30))
    with pytest.raises(DatasetError, match=r"eccv_image_to_caption\.json: cannot be read"):
        evaluate_eccv(embeddings, tmp_path)
    (tmp_path / "eccv_image_to_caption.json").write_text('{"4": [10, 40]}')
    (tmp_path / "eccv_caption_to_image.json").write_text('{"10": [1]}')
    with pytest.raises(DatasetError, match=r"names 1 items that the evaluated data lacks.* is 4"):
        evaluate_eccv(embeddings, tmp_path)
    (tmp_path / "eccv_image_to_caption.json").write_text('{"1": [40]}')
    with pytest.raises(DatasetError, match="none of whose answers is in the evaluated data"):
        evaluate_eccv(embeddings, tmp_path)
    (tmp_path / "eccv_image_to_caption.json").write_text('{"1": []}')
    with pytest.raises(DatasetError, match="a query without right answers"):
        evaluate_eccv(embeddings, tmp_path)
    (tmp_path / "eccv_image_to_caption.json").write_text("[1]")
    with pytest.raises(DatasetError, match="is damaged"):
        evaluate_eccv(embeddings, tmp_path)
    (tmp_path / "eccv_image_to_caption.json").write_text('{"1": [10]}')
    found = evaluate_eccv(embeddings, tmp_path)
    assert found["i2t"].r1 == found["t2i"].r1 == 100
