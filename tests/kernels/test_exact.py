"""Products in float32 stay products in float32, whatever a program allows elsewhere.

pytorch/pytorch#53635, pytorch/pytorch#66212 and triton-lang/triton#1800 are of products that TF32
changed without a word; Parskatt/RoMaV2#35 is of a model that refuses to run with it.
"""

from __future__ import annotations

import pytest
import torch

from vse_kernels import all_violations, hardest_negatives, paired_ranks, retrieval_ranks
from vse_kernels.exact import full_precision

PLACES = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


@pytest.fixture(params=["high", "medium"])
def allowed(request):
    """A program that has allowed products of fewer bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def test_the_setting_holds_within_and_comes_back(allowed):
    outside = [place.fp32_precision for place in PLACES]
    assert "tf32" in outside

    @full_precision()
    def fails():
        raise KeyError([place.fp32_precision for place in PLACES])

    with pytest.raises(KeyError, match="'ieee', 'ieee'"):
        fails()
    assert [place.fp32_precision for place in PLACES] == outside
    assert torch.get_float32_matmul_precision() == allowed


def test_of_two_that_overlap_the_last_restores_the_setting(allowed):
    outside = [place.fp32_precision for place in PLACES]
    first, second = full_precision(), full_precision()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert [place.fp32_precision for place in PLACES] == ["ieee", "ieee"]
    second.__exit__(None, None, None)
    assert [place.fp32_precision for place in PLACES] == outside


def test_what_is_inherited_stays_inherited():
    before = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = "none"
        with full_precision():
            pass
        inherited = [place.fp32_precision for place in PLACES]
        torch.backends.fp32_precision = "tf32"
        with full_precision():
            pass
        torch.backends.fp32_precision = "none"
        assert [place.fp32_precision for place in PLACES] == inherited
    finally:
        torch.backends.fp32_precision = before


def results():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 256, 512, generator=generator)
    ids, offsets = torch.arange(256), torch.arange(257)
    positive = (left * right).sum(1)
    violations = all_violations(left, right, ids, ids, positive, positive, 0.2)
    limit = torch.full((256, 2), 3.0)
    below = hardest_negatives(left, right, ids, ids, columns=False, query_limit=limit)
    return [
        hardest_negatives(left, right, ids, ids).row_score,
        below.row_score,
        violations.row_loss,
        violations.query_gradient,
        retrieval_ranks(left, right, offsets, ids),
        *paired_ranks(left, right, ids),
    ]


def test_results_are_those_of_full_precision(allowed):
    """Their bits; a CPU too has products of fewer bits for `medium`."""
    torch.set_float32_matmul_precision("highest")
    expected = results()
    torch.set_float32_matmul_precision(allowed)
    for actual, want in zip(results(), expected, strict=True):
        assert torch.equal(actual, want)


def test_every_product_is_guarded(allowed, monkeypatch):
    seen = []
    for owner, name in ((torch.Tensor, "__matmul__"), (torch.Tensor, "addmm_"), (torch, "mm")):
        plain = getattr(owner, name)

        def product(*given, plain=plain, **options):
            seen.append([place.fp32_precision for place in PLACES])
            return plain(*given, **options)

        monkeypatch.setattr(owner, name, product)
    results()
    assert len(seen) >= 6
    assert all(place == ["ieee", "ieee"] for place in seen)
