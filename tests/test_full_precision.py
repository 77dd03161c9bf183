"""Scores that decide or are published: float32 products, whatever a program allows elsewhere.

huggingface/sentence-transformers#3892 and embeddings-benchmark/mteb#4933 are of ranks that changed
with the bits of the scores, pytorch/pytorch#53635 of products that TF32 changed without a word.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vse_kernels import gpo_pool
from vse_scale.objective import make_objective
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.protocols.eccv import retrieval_figures
from vse_scale.retrieval.ranks import nearest
from vse_scale.retrieval.separation import caption_similarities

PLACES = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
OBJECTIVES = [("infonce", {}), ("sigmoid", {}), ("hinge", {"mode": "all"})]
OBJECTIVES += [("infonce", {"matryoshka": (256, 512)})]


def unit_rows():
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(2, 256, 512, generator=generator), dim=2)


def of_objective(kind, settings):
    images, captions = (rows.requires_grad_() for rows in unit_rows())
    objective = make_objective(kind, **settings)
    loss = objective.loss(images, captions)
    loss.backward()
    return [loss, images.grad, captions.grad]


def similarities():
    images, captions = unit_rows()
    names = tuple(range(len(images)))
    return caption_similarities(
        Embeddings(images, captions, torch.arange(len(images)), names, names)
    )


def pooled():
    features = torch.randn(2, 512, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    table = torch.linspace(0, 1, 512).repeat(2, 1).requires_grad_()
    found = gpo_pool(features, torch.tensor([512, 300]), table, torch.tensor([0, 1]), impl="torch")
    found.sum().backward()
    return [found, features.grad, table.grad]


CASES = {
    **{f"{kind} {settings}": (lambda k=kind, s=settings: of_objective(k, s))
       for kind, settings in OBJECTIVES},
    "nearest": lambda: nearest(*unit_rows(), 3),
    "caption_similarities": similarities,
    "eccv": lambda: [retrieval_figures(*unit_rows(), [[i] for i in range(256)], [3] * 256)],
    "gpo_pool": pooled,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_full_precision(name, monkeypatch):
    """Their setting wherever it runs, and their bits where a CPU has products of fewer."""
    seen = []

    def watched(plain):
        def product(*given, **options):
            seen.append([place.fp32_precision for place in PLACES])
            return plain(*given, **options)

        return product

    with monkeypatch.context() as patch:
        for place, product in (
            (torch.Tensor, "__matmul__"), (torch.Tensor, "addmm_"), (torch, "bmm"),
        ):  # fmt: skip
            patch.setattr(place, product, watched(getattr(place, product)))
        before = torch.get_float32_matmul_precision()
        expected = CASES[name]()
        assert seen
        seen.clear()
        try:
            torch.set_float32_matmul_precision("medium")
            actual = CASES[name]()
        finally:
            torch.set_float32_matmul_precision(before)
    assert seen
    assert all(place == ["ieee", "ieee"] for place in seen)
    for one, other in zip(actual, expected, strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
        else:
            assert str(one) == str(other)
