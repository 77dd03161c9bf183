"""Protocols as parts: one from outside, what each checks early, and what the command opens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from vse_scale import cli
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import DatasetError
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.gallery import source_ids
from vse_scale.retrieval.metrics import METRICS, Metric
from vse_scale.retrieval.protocols.base import RankingProtocol
from vse_scale.retrieval.protocols.cxc import Cxc
from vse_scale.retrieval.protocols.eccv import Eccv
from vse_scale.retrieval.protocols.folds import PROTOCOLS, Coco5K
from vse_scale.retrieval.protocols.registry import BESIDE
from vse_scale.retrieval.protocols.registry import PROTOCOLS as REGISTRY
from vse_scale.retrieval.similarities import Similarities

R20 = Metric("r20", "R@20", "percent", "higher", lambda r: 100.0 * float((r <= 20).mean()), k=20)


class Counted:
    """The figures of `FirstImage`."""

    def __init__(self, first: Any, split: str, images: int) -> None:
        self.first, self.split, self.images = first, split, images

    def table(self) -> str:
        return f"first {self.first} of {self.images}"

    def markdown(self, name: str) -> str:
        return f"| {name} | {self.first} |"

    def to_dict(self) -> dict[str, Any]:
        return {"first": self.first, "on": self.split}


class FirstImage(RankingProtocol):
    """A protocol of someone else's."""

    needs_source_order: ClassVar[bool] = True
    takes_similarities = False

    def rank(self, gallery, *, split="test", order=None, processes=None):
        assert order is not None
        assert set(order) == set(gallery.image_ids)
        return Counted(order[0], split, len(gallery.image_ids))


OURS = f"{__name__}:FirstImage"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["vse-scale", "eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)


def test_a_protocol_from_outside(model_folder, scenes, tmp_path, monkeypatch, capsys):
    opened = []
    real = ShardDataset.__init__

    def counting(self, *arguments, **named):
        opened.append(arguments)
        real(self, *arguments, **named)

    monkeypatch.setattr(ShardDataset, "__init__", counting)
    out = tmp_path / "found.json"
    options = ["--model", model_folder, "--data", scenes, "--split", "val", "--protocol", OURS]
    run(monkeypatch, *options, "--json", out)
    assert len(opened) == 1
    first = source_ids(ShardDataset(scenes, "val"))[0]
    assert capsys.readouterr().out == f"first {first} of 20\n"
    assert json.loads(out.read_text()) == {"first": first, "on": "val", "split": "val"}


def test_an_added_metric_is_in_all_that_the_command_writes(
    model_folder, scenes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(METRICS, "r20", R20)
    out = tmp_path / "found.json"
    options = ["--model", model_folder, "--data", scenes, "--split", "val", "--json", out]
    run(monkeypatch, *options)
    assert "R@20" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["t2i"]["r20"] == 100  # of 20 images
    assert found["rsum"] <= 600
    run(monkeypatch, *options, "--markdown")
    assert capsys.readouterr().out.count("| R@20 |") == 2


def test_the_registry_finds_every_protocol():
    kinds = {name: REGISTRY.find(name) for name in REGISTRY.names()}
    assert {name: kind for name, kind in kinds.items() if name != "cxc"} == PROTOCOLS
    assert kinds["cxc"] is Cxc
    assert BESIDE.find("eccv") is Eccv
    for kind in (*kinds.values(), Eccv):
        assert set(kind.required) <= set(kind.options)


def test_what_is_refused_before_anything_is_encoded(tmp_path):
    Coco5K().check("test", np.full(5000, 5))
    with pytest.raises(DatasetError, match=r"coco-5k ranks 5,000 images .* 20 with at least 2"):
        Coco5K().check("val", np.full(20, 2))
    with pytest.raises(DatasetError, match=r"sits_val\.csv: cannot be read"):
        Cxc(tmp_path).check("val")
    with pytest.raises(DatasetError, match=r"sits_test\.csv: cannot be read"):
        Cxc(tmp_path).check("testall")
    with pytest.raises(DatasetError, match=r"eccv_image_to_caption\.json: cannot be read"):
        Eccv(tmp_path).check("test")


def test_the_parts_rank_as_the_functions_do(shared):
    folder = Path(shared) / "data" / "eccv"
    text = (Path(shared) / "data" / "coco_karpathy_test_text" / "captions.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    index = [image for image, row in enumerate(rows) for _ in row["caption_ids"]]
    images = torch.randn(len(rows), 4, generator=torch.manual_seed(0))
    embeddings = Embeddings(
        images, images[index], torch.tensor(index),
        tuple(row["image_id"] for row in rows),
        tuple(name for row in rows for name in row["caption_ids"]),
    )  # fmt: skip
    found = Eccv(folder).rank(embeddings)
    figures = found.to_dict()
    assert set(figures) == {"i2t", "t2i"}
    assert f"{figures['t2i']['map_at_r']:.1f}" in found.table()
    assert f"{figures['i2t']['r_precision']:.1f}" in found.markdown("ours")
    matrix = Similarities((np.eye(3),), (1.0,), torch.arange(3), (1, 2, 3), (1, 2, 3))
    with pytest.raises(TypeError, match="ranks embeddings"):
        Eccv(folder).rank(matrix)
