"""Problems whose offsets pass 2^31 elements without the memory of it.

The operands are views with huge strides: only the pages that they touch are ever used. The strides
themselves fit in 32 bits, so that a kernel that multiplied in 32 bits would wrap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.kernels.test_gpo import problem, run
from tests.kernels.test_hardest import expect_hardest, mining_problem
from tests.kernels.truth import masked_scores
from vse_kernels import gpo_pool, hardest_negatives


def expect_wide_pooling(device: str, axis: str) -> None:
    """Pooling of a strided view equals that of the same values stored densely, bit for bit."""
    stride, columns = 2**28, 8
    samples, positions = (9, 4) if axis == "sample" else (2, 9)
    strides = (stride, columns, 1) if axis == "sample" else (columns, stride, 1)
    memory = torch.empty(8 * stride + 1024, dtype=torch.bfloat16, device=device)
    view = memory.as_strided((samples, positions, columns), strides)
    features, lengths, table, rows, upstream = (
        tensor.to(device) for tensor in problem(samples, positions, columns, torch.bfloat16)
    )
    view.copy_(features)
    expected = run(features, lengths, table, rows, upstream, impl="triton")
    x, w = view.detach().requires_grad_(), table.clone().requires_grad_()
    pooled = gpo_pool(x, lengths, w, rows, impl="triton")
    gradients = torch.autograd.grad(pooled, (x, w), upstream)
    for actual, want in zip((pooled.detach(), *gradients), expected, strict=True):
        assert torch.equal(actual, want)


def expect_wide_mining(device: str) -> None:
    """Rows 2^22 elements apart, on either side: the last of 600 begin beyond 2^31."""
    stride, rows = 2**22, 600
    memory = torch.empty(stride * (rows - 1) + 64, dtype=torch.float16, device=device)
    queries, candidates, qids, cids = mining_problem(rows, 40, 64, 0, torch.float16)
    view: Tensor = memory.as_strided((rows, 64), (stride, 1))
    view.copy_(queries)
    for given in ((view, candidates, qids, cids), (candidates, view, cids, qids)):
        found = hardest_negatives(*(tensor.to(device) for tensor in given), impl="triton")
        scores = masked_scores(*(tensor.cpu() for tensor in given))
        expect_hardest(type(found)(*(tensor.cpu() for tensor in found)), scores)
