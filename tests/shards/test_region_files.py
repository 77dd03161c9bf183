"""Region features as detectors and their users write them.

Bottom-up attention's base64 ``.tsv`` (peteanderson80/bottom-up-attention; airsplay/lxmert
has four columns more), ``.npz`` per image (ruotianluo/ImageCaptioning.pytorch, cocobu_att), HDF5 of
``{id}_features`` (aimagelab/meshed-memory-transformer).
"""

from __future__ import annotations

import base64
import io
import json
import sys
import types

import numpy as np
import pytest

from vse_shards.errors import SourceError
from vse_shards.regions import load_regions, read_regions
from vse_shards.rgb import Rejected
from vse_shards.sources import Problem, Row
from vse_shards.sources.registry import SourceRequest, open_source

IDS = (391895, 522418, 7)
FEATURES = {i: np.random.default_rng(i).random((36, 16), np.float32) for i in IDS}


def text(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def line(image_id: int, values: np.ndarray, *more: object) -> str:
    boxes = text(np.zeros((len(values), 4), np.float32))
    cells = [image_id, 640, 480, *more, len(values), boxes, text(values)]
    return "\t".join(map(str, cells)) + "\n"


@pytest.fixture
def captions(tmp_path):
    """Karpathy's JSON of three images."""
    images = [
        {"filepath": "val2014", "filename": f"COCO_val2014_{i:012d}.jpg", "cocoid": i,
         "split": "val" if i == 7 else "train", "sentences": [{"raw": f"of {i}", "sentid": i}]}
        for i in IDS
    ]  # fmt: skip
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    return folder


def read(path):
    found = list(open_source("butd", SourceRequest(str(path))).rows())
    return (
        {row.image_id: row for row in found if isinstance(row, Row)},
        [problem for problem in found if isinstance(problem, Problem)],
    )


def regions_of(rows) -> dict[object, np.ndarray]:
    return {i: load_regions(read_regions(row.regions)) for i, row in rows.items()}


def write_tsv(folder):
    (folder / "karpathy_train.tsv.0").write_text(line(IDS[0], FEATURES[IDS[0]]))
    rest = "".join(line(i, FEATURES[i]) for i in IDS[1:])
    (folder / "karpathy_train.tsv.1").write_text(rest)


def write_lxmert(folder):
    rows = (line(i, FEATURES[i], "aaaa", "bbbb", "cccc", "dddd") for i in IDS)
    (folder / "train2014_obj36.tsv").write_text("".join(rows))


def write_npz(folder):
    (folder / "cocobu_att").mkdir()
    for i in IDS:
        np.savez(folder / "cocobu_att" / f"{i}.npz", feat=FEATURES[i])


def write_npy(folder):
    for i in IDS:
        np.save(folder / f"COCO_val2014_{i:012d}.npy", FEATURES[i])


@pytest.mark.parametrize("write", [write_tsv, write_lxmert, write_npz, write_npy])
def test_features_are_those_of_their_image(captions, write):
    write(captions)
    rows, problems = read(captions)

    assert problems == []
    assert {i: (row.split, row.captions[0].text, row.image) for i, row in rows.items()} == {
        i: ("val" if i == 7 else "train", f"of {i}", None) for i in IDS
    }
    for i, values in regions_of(rows).items():
        assert (values == FEATURES[i]).all()


def test_hdf5_is_read_by_its_keys(captions, monkeypatch):
    """With h5py's interface alone, which need not be installed."""
    content = {f"{i}_features": FEATURES[i] for i in IDS}
    content |= {f"{i}_boxes": np.zeros((36, 4)) for i in IDS}
    module = types.ModuleType("h5py")
    module.File = lambda path, mode: content
    monkeypatch.setitem(sys.modules, "h5py", module)
    (captions / "coco_detections.hdf5").write_bytes(b"")
    rows, problems = read(captions)

    assert problems == []
    for i, values in regions_of(rows).items():
        assert (values == FEATURES[i]).all()


def test_hdf5_names_the_package_that_reads_it(captions, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (captions / "other.h5").write_bytes(b"")
    with pytest.raises(SourceError, match=r"other.h5: is HDF5: pip install h5py"):
        read(captions)


def test_an_image_without_features_is_refused_by_itself(captions):
    (captions / "a.tsv").write_text(line(IDS[0], FEATURES[IDS[0]]))
    rows, problems = read(captions)

    assert list(rows) == [IDS[0]]
    assert [(p.key, p.reason) for p in problems] == [(i, "missing regions") for i in IDS[1:]]


def test_a_torn_line_is_damaged_and_no_cell_is_shown(captions):
    (captions / "a.tsv").write_text("".join(line(i, FEATURES[i]) for i in IDS)[:-100])
    rows, _ = read(captions)
    with pytest.raises(Rejected, match=r"its line of the \.tsv is no base64"):
        read_regions(rows[7].regions)

    (captions / "a.tsv").write_text("x" * 100_000 + "\n")
    with pytest.raises(SourceError) as refusal:
        read(captions)
    assert len(str(refusal.value)) < 400 + len(str(captions))


def test_features_need_captions_beside_them(tmp_path):
    (tmp_path / "a.tsv").write_text(line(1, FEATURES[7]))
    with pytest.raises(SourceError, match=r"need captions, and none of these; put one dataset_"):
        read(tmp_path)
    with pytest.raises(SourceError, match=r"need captions, and none of these; put one dataset_"):
        read(tmp_path / "a.tsv")


def test_objects_and_bombs_in_npz_are_refused(captions, monkeypatch):
    write_npz(captions)
    rows, _ = read(captions)
    np.savez(captions / "cocobu_att/7.npz", feat=np.array([None, {}], dtype=object))
    with pytest.raises(Rejected, match="holds object, not numbers"):
        read_regions(rows[7].regions)
    monkeypatch.setattr("vse_shards.regions._MAX_ARRAY", 1000)
    with pytest.raises(Rejected, match="too large"):
        read_regions(rows[IDS[0]].regions)


def test_a_build_stores_the_features(captions, command, tmp_path):
    write_tsv(captions)
    out = tmp_path / "out"
    done = command("build", "--source", "butd", "--input", captions, "--out", out, "--workers", 1)

    assert done.returncode == 0, done.stderr
    assert np.load(io.BytesIO(read_regions(read(captions)[0][7].regions))).shape == (36, 16)
    assert "val: 1 image, 1 caption in 1 shard" in done.stderr
