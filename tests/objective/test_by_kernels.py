"""InfoNCE and sigmoid by the kernels of a GPU: as defined, and as by the tiles of a CPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from cases import check, drawn_case
from test_objectives import Threads
from torch.nn import functional as F

from vse_kernels import contrastive
from vse_scale.objective import make_objective, sigmoid, softmax
from vse_scale.world.processes import World


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take the path of a GPU, by the kernels' reference in torch."""
    for module in (softmax, sigmoid):
        monkeypatch.setattr(module, "kernels_serve", lambda batch, limit: limit is None)
    return monkeypatch


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_loss_and_gradient_are_those_of_the_definition(
    by_kernels: pytest.MonkeyPatch, kind: str
) -> None:
    """Of several captions, with padding and equal ids, on one rank and on several, in float64."""
    for seed in range(300, 340):
        case = drawn_case(seed, kind=kind)
        threads = Threads(case["ranks"])
        by_kernels.setattr(World, "of_group", threads.world)
        try:
            check(case, threads.run(case))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {kind} {case['settings']}") from error


def results(kind: str, dtype: torch.dtype, **settings: Any) -> list[torch.Tensor]:
    """Loss, gradients of embeddings and of learned numbers, and figures, of a drawn batch."""
    generator = torch.Generator().manual_seed(5)
    images, captions = (
        F.normalize(torch.randn(count, 24, generator=generator), dim=1).to(dtype).requires_grad_()
        for count in (40, 120)
    )
    ids = torch.randint(30, (40,), generator=generator).repeat_interleave(3)
    valid = torch.rand(120, generator=generator) > 0.2
    objective = make_objective(kind, **settings)
    found = objective.compute(images, captions, ids=ids, valid=valid, phase=objective.final_phase)
    found.loss.backward()
    numbers = torch.tensor([*found.learned.values(), *found.statistics.values()])
    return [found.loss.detach().double(), images.grad.double(), captions.grad.double(), numbers]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("infonce", {"temperature": 0.01}),
        ("infonce", {"temperature": 0.07, "matryoshka": [5, 24]}),
        ("sigmoid", {}),
        ("sigmoid", {"scale": 50.0, "bias": -3.0}),
        ("infonce", {"temperature": 0.07, "matryoshka": [5, 24], "score_precision": "fast"}),
        ("sigmoid", {"score_precision": "fast"}),
    ],
)
def test_the_kernel_gives_what_the_tiles_give(
    by_kernels: pytest.MonkeyPatch, kind: str, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    asked = []

    def use_triton(name: str, impl: str, rows: torch.Tensor, limit: str | None) -> bool:
        asked.append(rows.dtype)
        return True

    by_kernels.setattr(contrastive, "use_triton", use_triton)
    found = results(kind, dtype, **settings)
    # Cut embeddings have unit length again, and are no longer in 16 bits.
    fast = settings.get("score_precision") == "fast"
    at_size = torch.float32 if "matryoshka" in settings else dtype
    assert set(asked) == {torch.bfloat16 if fast else at_size}
    by_kernels.undo()
    wanted = results(kind, dtype, **settings)
    # Of a gradient: its own rounding, and that of weights, which the interpreter cuts.
    rounding = 2.0**-6 if dtype == torch.bfloat16 or fast else 2e-5
    for number in (0, 3):
        torch.testing.assert_close(found[number], wanted[number], rtol=1e-4, atol=2e-5)
    for side in (1, 2):
        room = rounding * float(wanted[side].abs().max())
        torch.testing.assert_close(found[side], wanted[side], rtol=rounding, atol=room)
