"""Towers of other packages: by an entry point, and as ``module:Class``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from vse_scale.config import Config
from vse_scale.errors import ConfigError
from vse_scale.model.blueprint import blueprint
from vse_scale.model.vse import VSEModel

BAG = Path(__file__).parents[1] / "support" / "bag_tower.py"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that offers the tower "sack", its module ``sack_towers``."""
    shutil.copy(BAG, tmp_path / "sack_towers.py")
    info = tmp_path / "sack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vse_scale.text_towers]\nsack = sack_towers:BagTower\n"
        "[vse_scale.image_towers]\nsack = sack_towers:BagTower\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("sack_towers", None)


def configured(**text: object) -> Config:
    return Config.parse(
        {
            "data": {"path": "d"},
            "run": {"dir": "r"},
            "model": {
                "embed_dim": 8,
                "pool": "mean",
                "image": {"backbone": "tiny", "size": 32},
                "text": text,
            },
        }
    )


@pytest.mark.parametrize("name", ["sack", "sack_towers:BagTower"])
def test_it_is_configured_saved_and_opened(package: Path, name: str, tmp_path: Path) -> None:
    config = configured(encoder=name, min_words=2)
    assert config.model.text.describe() == "bag of words"
    assert config.model.text.min_words == 2
    assert Config.parse(config.model_dump(mode="json")) == config
    assert blueprint(config)[0].vocab_size == 1000
    model = VSEModel(config.model, vocab_size=30, pad_id=0).eval()
    model.save_pretrained(tmp_path / "kept")
    opened = VSEModel.from_pretrained(tmp_path / "kept")
    ids, lengths = torch.randint(0, 30, (3, 5)), torch.tensor([5, 2, 1])
    with torch.no_grad():
        assert torch.equal(
            opened.encode_captions(ids, lengths), model.encode_captions(ids, lengths)
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"encoder": "sack", "min_word": 2}, "unknown key model.text.min_word; did you mean"),
        (
            {"encoder": "sack", "path": "p"},
            r"model\.text\.path is 'p': is a setting of encoder=",
        ),
        (
            {"encoder": "sack", "architecture": {"hidden_size": 8}},
            r"config: model\.text\.architecture is a setting of encoder=",
        ),
        ({"encoder": "suck"}, "text encoder 'suck' is not known; did you mean 'sack'"),
        ({"encoder": "sack_tower:BagTower"}, r"cannot be imported: No module named 'sack_tower'"),
        ({"encoder": "sack_towers:Nothing"}, r"cannot be imported: AttributeError"),
        ({"encoder": 3}, r"model\.text\.encoder is 3: text encoder is 3; give a name"),
    ],
)
def test_a_mistake_is_one_line(package: Path, text: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        configured(**text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pool", ["max", "first"])
def test_the_other_poolings(pool: str) -> None:
    from vse_scale.model.pooling import make_pool

    features, lengths = torch.randn(4, 6, 3, requires_grad=True), torch.tensor([6, 1, 3, 4])
    pooled = make_pool(pool)(features, lengths)
    for row, (vectors, length) in enumerate(zip(features.unbind(), lengths.tolist(), strict=True)):
        expected = vectors[:length].max(0).values if pool == "max" else vectors[0]
        assert torch.equal(pooled[row], expected)
    pooled.sum().backward()
    beyond = torch.arange(6) >= lengths[:, None]
    assert not features.grad[beyond].any()
    assert features.grad.sum().item() == pytest.approx(12)
    table = make_pool(pool).weight_table(lengths, 6)
    assert (table is None) == (pool == "first")
    if table is not None:
        ordered = features.masked_fill(beyond[..., None], -1e9).sort(1, descending=True).values
        torch.testing.assert_close((ordered * table[..., None]).sum(1), pooled)
