from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vse_scale.errors import DatasetError
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.protocols.cxc import TASKS, evaluate_cxc, rank_tasks, read_positives


def unit(rows: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(rows), dim=1)


@pytest.fixture(scope="module")
def published(shared):
    """The reference's embeddings, the positives of its annotations, and its recalls."""
    arrays = np.load(shared / "reference" / "retrieval.npz")
    graded = json.loads((shared / "reference" / "cxc_annotations.json").read_text())
    expected = json.loads((shared / "reference" / "retrieval_expected.json").read_text())["cxc"]
    image = {name: row for row, name in enumerate(graded["image_ids"])}
    caption = {name: row for row, name in enumerate(graded["caption_ids"])}

    def pairs(table, first, second, least):
        kept = ((first[a], second[b]) for a, row in table.items() for b, s in row if s >= least)
        return torch.tensor(list(kept))

    co_captions = [[5 * i + a, 5 * i + b] for i in range(250) for a in range(5) for b in range(5)]
    positives = {
        "i2t": pairs(graded["cxc_it"]["i2t"], image, caption, 3),
        "t2i": pairs(graded["cxc_it"]["t2i"], caption, image, 3),
        "t2t": torch.cat(
            [torch.tensor(co_captions), pairs(graded["cxc_t2t"], caption, caption, 3)]
        ),
        "i2i": pairs(graded["cxc_i2i"], image, image, 2.5),
    }
    embeddings = Embeddings(
        torch.from_numpy(arrays["image_embeddings"]),
        torch.from_numpy(arrays["caption_embeddings"]),
        torch.arange(1250) // 5,
        tuple(graded["image_ids"]),
        tuple(graded["caption_ids"]),
    )
    return embeddings, positives, expected


def test_published_recalls(published):
    embeddings, positives, expected = published
    found = rank_tasks(embeddings, positives, as_published=True)
    for task, figures in expected.items():
        way = found.recalls[task]
        assert [way.r1, way.r5, way.r10] == pytest.approx(figures, rel=0, abs=1e-9)
    assert found.queries == {"i2t": 250, "t2i": 1250, "t2t": 1250, "i2i": 207}


@pytest.fixture
def folder(tmp_path):
    """Ratings of three images with two captions each."""
    names = [f"COCO_val2014_{i:012d}.jpg" for i in (10, 20, 30)]
    captions = [f"COCO_val2014:sentid:{c}" for c in (1, 2, 3, 4, 5, 6)]
    own = [f"{c},{names[k // 2]},{2 + k % 3},c2i_original" for k, c in enumerate(captions)]
    files = {
        "sits": ("caption,image", [*own, f"{captions[0]},{names[1]},3.0,c2i_intrasim"]),
        "sts": ("caption1,caption2", [f"{captions[1]},{captions[4]},3.2,c2c_isim"]),
        "sis": (
            "image1,image2",
            [f"{names[0]},{names[1]},2.5,i2i_csim", f"{names[1]},{names[2]},2.4,i2i_csim"],
        ),
    }
    for task, (columns, rows) in files.items():
        lines = [f"{columns},agg_score,sampling_method", *rows]
        (tmp_path / f"{task}_test.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def small():
    rng = np.random.default_rng(0)
    return Embeddings(
        unit(rng.standard_normal((3, 4))),
        unit(rng.standard_normal((6, 4))),
        torch.arange(6) // 2,
        ("10", "COCO_val2014_000000000020.jpg", 30),
        (1, 2, 3, 4, 5, 6),
    )


def test_positives_of_small_files(folder, small):
    found = {task: set(map(tuple, pairs.tolist())) for task, pairs in
             read_positives(small, folder, "test").items()}  # fmt: skip
    own = {(caption, caption // 2) for caption in range(6)}
    assert found["t2i"] == own | {(0, 1)}
    assert found["i2t"] == {(image, caption) for caption, image in found["t2i"]}
    pairs = {(0, 1), (2, 3), (4, 5), (1, 4)}
    assert found["t2t"] == pairs | {(b, a) for a, b in pairs}
    assert found["i2i"] == {(0, 1), (1, 0)}


def test_the_query_is_not_its_own_answer_nor_its_rival(small):
    # Query 0's one right answer, row 1, has a negative similarity; row 2 a lower one.
    images = unit(np.array([[1.0, 0.0], [-0.1, 1.0], [-1.0, 0.1]]))
    embeddings = replace(small, images=images, captions=images[torch.arange(6) // 2])
    positives = {task: torch.tensor([[0, 1]]) for task in TASKS}
    assert rank_tasks(embeddings, positives).recalls["i2i"].mean_rank == 1
    published = rank_tasks(embeddings, positives, as_published=True)
    assert published.recalls["i2i"].mean_rank == 2
    assert published.queries["i2i"] == 1


def test_unrated_rows_are_left_out(folder, small):
    extra = Embeddings(
        torch.cat([small.images, small.captions[:1]]),
        torch.cat([small.images[:1], small.captions]),
        torch.cat([torch.tensor([3]), small.caption_to_image]),
        (*small.image_ids, 99),
        (77, *small.caption_ids),
    )
    assert evaluate_cxc(extra, folder) == evaluate_cxc(small, folder)


def test_table_and_json_hold_the_same_figures(folder, small):
    found = evaluate_cxc(small, folder)
    figures = json.loads(json.dumps(found.to_dict()))
    lines = {line[:16].strip(): line.split() for line in found.table().splitlines()}
    for task, name in TASKS.items():
        expected = [f"{figures[task][key]:.1f}" for key in ("r1", "r5", "r10")]
        assert lines[name][-3:] == expected
        assert lines[name][-4] == str(figures["queries"][task])


def test_wrong_files_are_named(folder, small):
    shorter = replace(
        small,
        captions=small.captions[:5],
        caption_to_image=small.caption_to_image[:5],
        caption_ids=small.caption_ids[:5],
    )
    with pytest.raises(DatasetError, match=r"rates 6 captions of split test, .* has 5"):
        evaluate_cxc(shorter, folder)
    with pytest.raises(DatasetError, match=r"sits_val\.csv: cannot be read"):
        evaluate_cxc(small, folder, "val")
    with pytest.raises(DatasetError, match="'abc' holds no COCO id"):
        evaluate_cxc(replace(small, image_ids=("abc", "b", "c")), folder)
    sits = folder / "sits_val.csv"
    sits.write_text("caption,image,agg_score\nx,COCO_1.jpg,5\n")
    with pytest.raises(DatasetError, match=r"sits_val\.csv: is damaged \('x' holds no COCO id\)"):
        evaluate_cxc(small, folder, "val")
    sis = folder / "sis_test.csv"
    sis.write_text(sis.read_text() + "COCO_1.jpg,COCO_2.jpg,much,x\n")
    with pytest.raises(DatasetError, match=r"sis_test\.csv: is damaged .*'much'"):
        evaluate_cxc(small, folder)
    sis.write_text("image1,image2,agg_score\nCOCO_10.jpg,COCO_20.jpg,nan\n")
    with pytest.raises(DatasetError, match=r"sis_test\.csv: is damaged \(nan is no rating\)"):
        evaluate_cxc(small, folder)
    sis.write_text("image1,image2,agg_score\n")
    with pytest.raises(DatasetError, match=r"sis_test\.csv: rates no pair; download it again"):
        evaluate_cxc(small, folder)
    sis.write_text("image1,image2,score1,score2\n")
    with pytest.raises(DatasetError, match="without agg_score"):
        evaluate_cxc(small, folder)


def test_positives_of_the_real_files(shared):
    data = shared / "data"
    rows = [
        json.loads(line)
        for line in (data / "coco_karpathy_test_text" / "captions.jsonl").read_text().splitlines()
    ]
    caption_ids = [name for row in rows for name in row["caption_ids"]]
    owners = [image for image, row in enumerate(rows) for _ in row["caption_ids"]]
    embeddings = Embeddings(
        torch.empty(len(rows), 0),
        torch.empty(len(caption_ids), 0),
        torch.tensor(owners),
        tuple(row["image_id"] for row in rows),
        tuple(caption_ids),
    )
    positives = read_positives(embeddings, data / "cxc" / "data", "test")
    eccv = json.loads((data / "eccv" / "cxc_caption_to_image.json").read_text())
    rated = {(int(caption), image) for caption, images in eccv.items() for image in images}
    assert len(rated) == 35585
    found = {
        (caption_ids[caption], rows[image]["image_id"])
        for caption, image in positives["t2i"].tolist()
    }
    own = {(name, row["image_id"]) for row in rows for name in row["caption_ids"]}
    assert found == rated | own
    assert len(positives["i2i"][:, 0].unique()) == 4791
    assert len(positives["t2t"][:, 0].unique()) == 25000
