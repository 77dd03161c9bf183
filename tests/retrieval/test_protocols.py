from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from vse_scale.errors import ConfigError, DatasetError
from vse_scale.evaluation import recall_at_k
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.protocols.folds import evaluate, fold_recalls


def unit(rng: np.random.Generator, rows: int) -> torch.Tensor:
    drawn = torch.from_numpy(rng.standard_normal((rows, 8)).astype(np.float32))
    return torch.nn.functional.normalize(drawn, dim=1)


def make_embeddings(images: int, captions_per_image: int = 5, seed: int = 0) -> Embeddings:
    rng = np.random.default_rng(seed)
    pictures = unit(rng, images)
    owners = torch.arange(images).repeat_interleave(captions_per_image)
    captions = torch.nn.functional.normalize(pictures[owners] + 1.2 * unit(rng, len(owners)), dim=1)
    return Embeddings(
        pictures,
        captions,
        owners,
        tuple(f"image-{row}" for row in range(images)),
        tuple(range(len(owners))),
    )


def shuffled(embeddings: Embeddings, seed: int = 0) -> Embeddings:
    """The same split with its images in another order, as a shard build leaves them."""
    rows = np.random.default_rng(seed).permutation(len(embeddings.images))
    captions = np.concatenate([np.flatnonzero(embeddings.caption_to_image == row) for row in rows])
    return Embeddings(
        embeddings.images[rows],
        embeddings.captions[captions],
        torch.from_numpy(np.argsort(rows))[embeddings.caption_to_image[captions]],
        tuple(embeddings.image_ids[row] for row in rows),
        tuple(embeddings.caption_ids[row] for row in captions),
    )


def test_published_five_folds(shared):
    arrays = np.load(shared / "reference" / "retrieval.npz")
    expected = json.loads((shared / "reference" / "retrieval_expected.json").read_text())
    embeddings = Embeddings(
        torch.from_numpy(arrays["image_embeddings"]),
        torch.from_numpy(arrays["caption_embeddings"]),
        torch.arange(1250) // 5,
        tuple(range(250)),
        tuple(range(1250)),
    )
    folds = fold_recalls(embeddings, 5)
    for fold, figures in zip(folds, expected["five_fold"], strict=True):
        assert list(vars(fold.i2t).values()) == pytest.approx(figures["i2t"], rel=0, abs=1e-9)
        assert list(vars(fold.t2i).values()) == pytest.approx(figures["t2i"], rel=0, abs=1e-9)


def test_plain_ranks_all_there_is():
    embeddings = make_embeddings(30, 2)
    evaluation = evaluate("plain", embeddings)
    assert evaluation.recalls == recall_at_k(
        embeddings.images, embeddings.captions, embeddings.caption_to_image
    )
    assert (evaluation.images, evaluation.captions, evaluation.folds) == (30, 60, ())


def test_coco_1k_is_the_mean_of_five_consecutive_folds():
    embeddings = make_embeddings(5000)
    evaluation = evaluate("coco-1k", embeddings)
    for fold in (0, 4):
        rows, captions = (
            slice(fold * 1000, fold * 1000 + 1000),
            slice(fold * 5000, fold * 5000 + 5000),
        )
        assert evaluation.folds[fold] == recall_at_k(
            embeddings.images[rows], embeddings.captions[captions], torch.arange(5000) // 5
        )
    assert evaluation.recalls.rsum == pytest.approx(
        np.mean([fold.rsum for fold in evaluation.folds])
    )
    assert len(evaluation.to_dict()["folds"]) == 5


def test_order_makes_a_shuffled_split_the_published_one():
    embeddings = make_embeddings(5000)
    mixed = shuffled(embeddings)
    published = evaluate("coco-1k", embeddings)
    assert evaluate("coco-1k", mixed).folds != published.folds
    assert evaluate("coco-1k", mixed, order=embeddings.image_ids) == published


def test_order_leaves_out_what_it_does_not_name():
    embeddings = make_embeddings(20, 3)
    found = evaluate("plain", embeddings, order=["image-7", "image-2"])
    rows = torch.tensor([7, 2])
    captions = torch.tensor([21, 22, 23, 6, 7, 8])
    assert (found.images, found.captions) == (2, 6)
    assert found.recalls == recall_at_k(
        embeddings.images[rows], embeddings.captions[captions], [0, 0, 0, 1, 1, 1]
    )


def test_only_the_first_five_captions_of_an_image_count():
    seven = make_embeddings(1000, 7)
    first_five = torch.arange(7000) % 7 < 5
    expected = recall_at_k(seven.images, seven.captions[first_five], torch.arange(5000) // 5)
    evaluation = evaluate("flickr30k", shuffled(seven))
    assert evaluation.captions == 5000
    assert evaluation.recalls.to_dict() == expected.to_dict()


@pytest.mark.parametrize(
    ("protocol", "images", "captions", "message"),
    [
        ("coco-5k", 1000, 5, "ranks 5,000 images .* has 1,000 with at least 5"),
        ("flickr30k", 1000, 4, "ranks 1,000 images with 5 captions each; .* at least 4"),
    ],
)
def test_a_split_of_another_size_is_refused(protocol, images, captions, message):
    with pytest.raises(DatasetError, match=message):
        evaluate(protocol, make_embeddings(images, captions))


def test_wrong_names_are_refused():
    embeddings = make_embeddings(4)
    with pytest.raises(ConfigError, match="'coco'; choose one of plain, coco-1k"):
        evaluate("coco", embeddings)
    with pytest.raises(DatasetError, match=r"1 of 2 images of the order .* the first is 'other'"):
        evaluate("plain", embeddings, order=["image-0", "other"])
    with pytest.raises(DatasetError, match="names an image twice"):
        evaluate("plain", embeddings, order=["image-0", "image-0"])
    with pytest.raises(DatasetError, match="4 images do not cut into 3 equal folds"):
        fold_recalls(embeddings, 3)


def test_table_shows_the_figures_in_80_columns():
    evaluation = evaluate("plain", make_embeddings(40))
    table = evaluation.table()
    assert max(map(len, table.splitlines())) <= 80
    for name, way in (
        ("image to text", evaluation.recalls.i2t),
        ("text to image", evaluation.recalls.t2i),
    ):
        line = next(line for line in table.splitlines() if line.startswith(name))
        assert [float(figure) for figure in re.findall(r"[\d.]+", line)] == [
            round(figure, 1) for figure in vars(way).values()
        ]
    assert f"{evaluation.recalls.rsum:.1f}" in table.splitlines()[-1]
