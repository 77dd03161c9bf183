from __future__ import annotations

import numpy as np
import pytest
import torch

from vse_scale.errors import DatasetError, ModelError
from vse_scale.evaluation import recall_at_k
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.protocols.folds import evaluate
from vse_scale.retrieval.similarities import open_similarities


def save(tmp_path, *matrices):
    files = []
    for number, (matrix, weight) in enumerate(matrices):
        path = tmp_path / f"{number}.npy"
        np.save(path, matrix)
        files.append((path, weight))
    return files


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    images = [rng.integers(-3, 4, (12, 5)).astype(np.float32) for _ in range(2)]
    captions = [rng.integers(-3, 4, (30, 5)).astype(np.float32) for _ in range(2)]
    return images, captions, torch.from_numpy(rng.integers(0, 12, 30)).sort().values


@pytest.mark.parametrize("tile", [1 << 24, 70])
def test_a_weighted_sum_ranks_like_its_embeddings(parts, tmp_path, monkeypatch, tile):
    monkeypatch.setattr("vse_scale.retrieval.similarities._TILE_ELEMENTS", tile)
    images, captions, owners = parts
    files = save(
        tmp_path,
        ((images[0] @ captions[0].T).astype(np.float64), 0.25),
        (images[1] @ captions[1].T, 2.0),
    )
    opened = open_similarities(files, range(12), range(30), owners)
    both = np.concatenate([0.25 * images[0], 2 * images[1]], axis=1)
    expected = recall_at_k(both, np.concatenate(captions, axis=1), owners)
    assert evaluate("plain", opened).recalls == expected
    # In another order of the images, some of them left out.
    order = [7, 3, 11, 0, 5]
    new = {row: place for place, row in enumerate(order)}
    kept = [c for c, owner in enumerate(owners.tolist()) if owner in new]
    part = recall_at_k(
        both[order],
        np.concatenate(captions, axis=1)[kept],
        [new[owners[c].item()] for c in kept],
    )
    assert evaluate("plain", opened, order).recalls == part


def test_equal_similarities_rank_last(tmp_path):
    owners = torch.arange(20) // 2
    files = save(tmp_path, (np.full((10, 20), 0.1, np.float32), 0.3), (np.full((10, 20), 0.7), 0.1))
    found = evaluate("plain", open_similarities(files, range(10), range(20), owners)).recalls
    assert (found.i2t.mean_rank, found.t2i.mean_rank) == (19, 10)


@pytest.mark.filterwarnings("error")
def test_a_signaling_nan_is_refused_in_one_line(parts, tmp_path):
    broken = np.ones((12, 30), np.float32)
    for row, column in ((3, 4), (0, 0)):
        broken[row, column] = np.uint32(0x7F800001).view(np.float32)
        similarities = open_similarities(
            save(tmp_path, (broken, 1.0)), range(12), range(30), parts[2]
        )
        with pytest.raises(ModelError, match="not finite"):
            evaluate("plain", similarities)


def test_files_that_do_not_fit(parts, tmp_path):
    owners = parts[2]
    (tmp_path / "junk.npy").write_bytes(b"junk")
    wrong = {
        tmp_path / "none.npy": "cannot be read",
        tmp_path / "junk.npy": r"is no whole \.npy file",
        save(tmp_path, (np.ones((30, 12)), 1))[0][0]: r"shape \(30, 12\); the split has 12 images",
    }
    for path, message in wrong.items():
        with pytest.raises(DatasetError, match=message):
            open_similarities([(path, 1.0)], range(12), range(30), owners)
    broken = np.ones((12, 30))
    broken[3, 4] = np.nan
    files = save(tmp_path, (broken, 1.0))
    with pytest.raises(ModelError, match="not finite"):
        evaluate("plain", open_similarities(files, range(12), range(30), owners))
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DatasetError, match="whole"):
        open_similarities([(tmp_path / "pickled.npy", 1.0)], range(12), range(30), owners)


def test_embeddings_and_similarities_agree_on_folds(tmp_path):
    rng = np.random.default_rng(1)
    images = rng.standard_normal((5000, 8)).astype(np.float32)
    owners = torch.arange(25000) // 5
    captions = images[owners] + rng.standard_normal((25000, 8)).astype(np.float32)
    ids, names = tuple(range(5000)), tuple(range(25000))
    embeddings = Embeddings(
        torch.from_numpy(images), torch.from_numpy(captions), owners, ids, names
    )
    files = save(tmp_path, (images @ captions.T, 1.0))
    opened = open_similarities(files, ids, names, owners)
    first, second = (evaluate("coco-1k", each) for each in (embeddings, opened))
    assert len(first.folds) == 5
    assert first.recalls.rsum == pytest.approx(second.recalls.rsum, abs=0.05)  # rounding of ties
    assert "| ours | " in first.markdown("ours")
