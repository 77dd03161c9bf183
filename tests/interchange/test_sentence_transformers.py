"""A model as a module of sentence-transformers, which finds the same embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vse_scale.errors import ModelError
from vse_scale.model.vse import VSEModel

library = pytest.importorskip(
    "sentence_transformers", reason="needs sentence-transformers, which is not installed"
)
TEXTS = ["a red ball", "a blue ring", "red"]


def as_a_module(folder):
    from vse_scale.interchange.sentence_transformers import VSEModule

    return library.SentenceTransformer(modules=[VSEModule(folder)])


def by_its_path(folder):
    """UKPLab/sentence-transformers#3935: since 6.0 a path opens classes of the library alone."""
    import vse_scale.interchange.auto  # noqa: F401  # registers

    return library.SentenceTransformer(str(folder))


@pytest.mark.parametrize("opening", [as_a_module, by_its_path])
def test_texts_and_pictures_are_embedded_as_by_the_model(folder, opening):
    opened = opening(folder)
    model = VSEModel.from_pretrained(folder)
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (40, 50 + 9 * n, 3), dtype=np.uint8)) for n in range(3)
    ]
    texts, images = opened.encode(TEXTS), opened.encode(pictures)
    assert np.abs(texts - model.embed(texts=TEXTS).numpy()).max() <= 1e-5
    assert np.abs(images - model.embed(pictures).numpy()).max() <= 1e-5
    scores = opened.similarity(images, texts)
    assert torch.allclose(scores, model.similarity(pictures, TEXTS), atol=1e-5)
    assert opened.get_embedding_dimension() == model.width


def test_what_it_saves_opens_again(folder, tmp_path):
    by_its_path(folder).save(str(tmp_path / "again"))
    texts = by_its_path(tmp_path / "again").encode(TEXTS)
    assert np.abs(texts - VSEModel.from_pretrained(folder).embed(texts=TEXTS).numpy()).max() <= 1e-5
    again = VSEModel.from_pretrained(tmp_path / "again").embed(texts=TEXTS)
    assert np.abs(texts - again.numpy()).max() <= 1e-5


def test_a_model_without_a_tokenizer_is_one_line(folder):
    from vse_scale.interchange.sentence_transformers import VSEModule

    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="has no tokenizer; import it again with --tokenizer"):
        VSEModule(folder)
