"""Every objective against its definition, on simulated ranks and on real ones."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import check, drawn_case, of_rank
from memory import run_alone
from torch.nn import functional as F

from vse_scale.config import Config
from vse_scale.errors import ConfigError
from vse_scale.objective import batch, hinge_loss, make_objective, softmax
from vse_scale.world.processes import World

KINDS = ["hinge", "infonce", "sigmoid", "hinge+infonce"]


class Threads:
    """Ranks that are threads: each gather waits for all of them."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=60)
        self._values: list[Any] = [None] * ranks
        self._mine = threading.local()
        self._ranks = ranks

    def world(self, group: object, device: torch.device) -> World:
        threads = self

        class ThreadWorld(World):
            def gather(self, values: torch.Tensor) -> torch.Tensor:
                threads._values[self.rank] = values
                threads._barrier.wait()
                gathered = torch.cat(threads._values)
                threads._barrier.wait()
                return gathered

        return ThreadWorld(self._mine.rank, self._ranks, device)

    def run(self, case: dict[str, Any]) -> list[dict[str, Any]]:
        def one(rank: int) -> dict[str, Any]:
            self._mine.rank = rank
            return of_rank(case, rank, self._ranks)

        with ThreadPoolExecutor(self._ranks) as pool:
            return list(pool.map(one, range(self._ranks)))


@pytest.mark.parametrize(
    "seeds", [range(64), pytest.param(range(64, 256), marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, kind: str, seeds: range
) -> None:
    for seed in seeds:
        case = drawn_case(seed, kind=kind)
        threads = Threads(case["ranks"])
        monkeypatch.setattr(World, "of_group", threads.world)
        # Scores of many tiles, of which the first are kept, or of few, and none is.
        rows, columns, kept = ((2, 3, 200), (512, 2048, 0))[seed % 2]
        monkeypatch.setattr(batch, "TILE_ROWS", rows)
        monkeypatch.setattr(batch, "TILE_COLUMNS", columns)
        monkeypatch.setattr(softmax, "_KEPT_BYTES", kept)
        try:
            check(case, threads.run(case))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {kind} {case['settings']}") from error


def pairs_of(seed: int, count: int = 12, dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, captions = (
        F.normalize(torch.randn(count, dim, generator=generator), dim=1) for _ in "ab"
    )
    return images.requires_grad_(), captions.requires_grad_()


def clip_loss(images, captions, logit_scale):
    """open_clip's ClipLoss on one process."""
    logits = logit_scale * images @ captions.T
    labels = torch.arange(len(images))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def siglip_loss(images, captions, logit_scale, logit_bias):
    """open_clip's SigLipLoss on one process."""
    logits = logit_scale * images @ captions.T + logit_bias
    labels = 2 * torch.eye(len(images)) - 1
    return -F.logsigmoid(labels * logits).sum() / len(images)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (make_objective("infonce", temperature=0.07), lambda x, y: clip_loss(x, y, 1 / 0.07)),
        (
            make_objective("sigmoid", scale=10.0, bias=-10.0),
            lambda x, y: siglip_loss(x, y, 10.0, -10.0),
        ),
    ],
    ids=["ClipLoss", "SigLipLoss"],
)
def test_float32_gives_what_open_clip_gives(objective, expected) -> None:
    found, wanted = pairs_of(0), pairs_of(0)
    loss, truth = objective.loss(*found), expected(*wanted)
    loss.backward()
    truth.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, truth, rtol=1e-6, atol=1e-6)
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_validity_may_be_of_images_or_of_their_captions(kind: str) -> None:
    images, captions = pairs_of(1, 6)[0], pairs_of(2, 12)[1]
    ids, valid = torch.tensor([3, 1, 4, 1, 5, 9]), torch.tensor([1, 1, 0, 1, 1, 1]).bool()
    objective = make_objective(kind)
    short = objective.loss(images, captions, ids=ids, valid=valid)
    each = (values.repeat_interleave(2) for values in (ids, valid))
    assert torch.equal(short, objective.loss(images, captions, *each))
    with pytest.raises(ValueError, match="12 captions, or of 6 images"):
        objective.loss(images, captions, ids=torch.arange(5))
    with pytest.raises(ValueError, match="as many captions"):
        objective.loss(images, captions[:11])
    with pytest.raises(ValueError, match="differ among the captions of an image"):
        objective.loss(images, captions, ids=torch.arange(12))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_part_in_it_whatever_it_holds(kind: str) -> None:
    images, captions = pairs_of(3)
    valid = torch.arange(12) < 9
    objective = make_objective(kind, **({"reduction": "mean"} if kind == "hinge" else {}))
    alone = objective.loss(images[:9], captions[:9])
    wanted = torch.autograd.grad(alone, (images, captions))
    with torch.no_grad():
        images[10], captions[11] = torch.nan, torch.inf
    loss = objective.loss(images, captions, valid=valid)
    torch.testing.assert_close(loss, alone, rtol=1e-6, atol=0)
    for own, other in zip(torch.autograd.grad(loss, (images, captions)), wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)
        assert not own[9:].any()
    nobody = objective.loss(images, captions, valid=torch.zeros(12, dtype=torch.bool))
    assert float(nobody) == 0.0
    assert not any(g.any() for g in torch.autograd.grad(nobody, (images, captions)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_number_shows_in_the_loss(kind: str) -> None:
    images, captions = pairs_of(4)
    broken = captions.detach().clone()
    broken[5] = torch.nan
    assert make_objective(kind).loss(images, broken).isnan()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_reach_it(kind: str) -> None:
    images, captions = pairs_of(5)
    objective = make_objective(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = objective.loss(images, captions)
    assert torch.equal(under, objective.loss(images, captions))


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_of_many_captions_has_no_negatives(kind: str) -> None:
    images, captions = pairs_of(6, 1)[0], pairs_of(7, 4)[1]
    objective = make_objective(kind)
    loss = float(objective.loss(images, captions).detach())
    scores = captions.detach() @ images.detach()[0]
    # The four pairs are all that the sigmoid asks about.
    expected = float(-F.logsigmoid(10 * scores - 10).mean()) if kind == "sigmoid" else 0.0
    assert loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid", "hinge+infonce"])
@pytest.mark.parametrize("sizes", [(), (5, 12)])
def test_fast_scores_are_those_of_rounded_embeddings(kind: str, sizes: tuple[int, ...]) -> None:
    """In float64; cut embeddings are rounded when they have unit length again."""
    whole = F.normalize(torch.randn(2, 20, 12, dtype=torch.float64), dim=2)
    fast: dict[str, Any] = {"score_precision": "fast"}
    if kind == "hinge+infonce":
        fast = {"infonce": fast}
    wanted = 0.0
    for size in sizes or (12,):
        cut = F.normalize(whole[..., :size], dim=2) if sizes else whole
        infonce = "infonce" if "+" in kind else kind
        rounded = cut.bfloat16().double()
        wanted = wanted + make_objective(infonce).loss(*rounded)
        if "+" in kind:
            wanted = wanted + make_objective("hinge", reduction="mean").loss(*cut)
    rows = [side.clone().requires_grad_() for side in whole]
    loss = make_objective(kind, matryoshka=sizes, **fast).loss(*rows)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-12)
    loss.backward()
    exact = [side.clone().requires_grad_() for side in whole]
    make_objective(kind, matryoshka=sizes).loss(*exact).backward()
    for row, other in zip(rows, exact, strict=True):
        assert row.grad is not None
        assert other.grad is not None
        off = float((row.grad - other.grad).abs().max())
        assert 0 < off < 0.02 * float(other.grad.abs().max())


@pytest.mark.parametrize("cold", [1.0, 0.0168, 1e-2, 1e-3])
def test_scores_far_apart_overflow_nothing(cold: float) -> None:
    sides = [side.detach() for side in pairs_of(8)]
    sides[1][3] = -sides[0][3]  # no pair is further apart
    for kind, settings in (("infonce", {"temperature": cold}), ("sigmoid", {"scale": 1 / cold})):
        found = []
        for dtype in (torch.float64, torch.float32):
            rows = [side.to(dtype).requires_grad_() for side in sides]
            loss = make_objective(kind, **settings).loss(*rows)
            found.append((loss.item(), torch.autograd.grad(loss, rows)))
        (exact, gradients), (single, others) = found
        assert single == pytest.approx(exact, rel=1e-5)
        for gradient, other in zip(gradients, others, strict=True):
            torch.testing.assert_close(other.double(), gradient, rtol=1e-4, atol=1e-5 / cold / 12)


def test_a_margin_may_be_of_each_pair() -> None:
    from vse_scale.objective import global_hinge_loss

    images, captions = (side.detach().double().requires_grad_() for side in pairs_of(9))
    ids, valid = torch.arange(12), torch.arange(12) != 4
    margin = torch.linspace(0.05, 0.6, 12, dtype=torch.float64)
    for mode in ("all", "hardest", "semi-hard"):
        found = global_hinge_loss(images, captions, ids=ids, valid=valid, margin=margin, mode=mode)
        # By the definition, in plain loops.
        total = 0.0
        for anchors, others in ((images, captions), (captions, images)):
            scores = (anchors @ others.T).detach()
            for a in range(12):
                negatives = [b for b in range(12) if b != a and valid[b] and valid[a]]
                if mode == "semi-hard":
                    negatives = [b for b in negatives if scores[a, b] < scores[a, a]]
                terms = [
                    max(0.0, float(margin[a] + scores[a, b] - scores[a, a])) for b in negatives
                ]
                total += sum(terms) if mode == "all" else max(terms, default=0.0)
        assert float(found.loss.detach()) == pytest.approx(total, rel=1e-12)
        dense = hinge_loss(images, captions, ids=ids, valid=valid, margin=margin, mode=mode)
        for own, other in zip(
            torch.autograd.grad(found.loss, (images, captions)),
            torch.autograd.grad(dense, (images, captions)),
            strict=True,
        ):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


def test_a_copy_of_the_pair_is_not_below_it() -> None:
    """One score by two products: rounding must not make a semi-hard negative of a duplicate."""
    images, captions = (side.detach() for side in pairs_of(10, 64, 384))
    captions[32:], images[32:] = captions[:32].clone(), images[:32].clone()
    twins = make_objective("hinge", mode="semi-hard").loss(images, captions)
    # Without the twins: each anchor's own is never the hardest.
    ids = torch.arange(64) % 32
    assert float(twins) == float(
        make_objective("hinge", mode="semi-hard").loss(images, captions, ids=ids)
    )


def test_a_learned_temperature_stops_at_the_coldest() -> None:
    for settings, coldest in (
        ({}, 0.01), ({"temperature": 0.004}, 0.004), ({"min_temperature": 0.05}, 0.05),
    ):  # fmt: skip
        objective = make_objective("infonce", **settings)
        with torch.no_grad():
            objective.learned["log_scale"].fill_(50.0)
        objective.bound_learned()
        assert math.exp(-float(objective.learned["log_scale"])) == pytest.approx(coldest)
    assert not make_objective("infonce", learn_temperature=False).learned
    assert list(make_objective("sigmoid", learn_scale=False).learned) == ["bias"]


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("infonce", {"temperature": 0.0}, "objective.temperature is 0.0"),
        ("infonce", {"label_smoothing": 1.0}, "objective.label_smoothing is 1.0"),
        ("infonce", {"margin": 0.2}, "objective infonce has no setting margin"),
        ("sigmoid", {"scale": -1.0}, "objective.scale is -1.0"),
        ("sigmoid", {"matryoshka": [4, 8], "matryoshka_weights": [1.0]}, "one weight for each"),
        ("sigmoid", {"matryoshka": [4], "matryoshka_weights": []}, "^matryoshka_weights are 0"),
        (
            "hinge+infonce",
            {"hinge": {"matryoshka": [4]}},
            r"^The sizes.* set objective\.matryoshka",
        ),
        ("hinge+infonce", {"hinge": {"kind": "infonce"}}, r"^objective\.hinge\.kind is 'infonce'"),
        ("hinge+infonce", {"infonce": {"kind": "x" * 999}}, r"^objective\.infonce\.kind.{,170}$"),
        (
            "hinge+infonce",
            {"hinge_weight": 0.0, "infonce_weight": 0.0},
            r"^objective\.hinge_weight and objective\.infonce_weight are both 0",
        ),
        ("hinge+infonce", {"hinge": {"margn": 1}}, "objective.hinge.margn"),
    ],
)
def test_settings_out_of_bounds_are_named(kind: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_objective(kind, **settings)


@pytest.mark.parametrize("section", [{}, {"margin": 0.1}, {"kind": "hinge", "warmup_epochs": 0}])
def test_the_hinge_beside_infonce_is_a_mean_unless_it_is_said(section: dict[str, Any]) -> None:
    settings = make_objective("hinge+infonce", hinge=section).settings
    assert settings.hinge.reduction == "mean"
    config = {"data": {"path": "x"}, "run": {"dir": "y"}}
    config["objective"] = {"kind": "hinge+infonce", "hinge": section}
    assert Config.parse(config).objective == settings
    summed = make_objective("hinge+infonce", hinge={**section, "reduction": "sum"})
    assert summed.settings.hinge.reduction == "sum"
    both = make_objective("hinge+infonce", hinge=section)
    alone = make_objective(**{"kind": "hinge", **section, "reduction": "mean"})
    parts = (both, alone, make_objective("infonce"))
    total, *losses = (one.loss(*pairs_of(11)).item() for one in parts)
    assert total == pytest.approx(sum(losses), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_loss_fills_the_gradient_of_the_learned_numbers(kind: str) -> None:
    objective = make_objective(kind)
    images, captions = pairs_of(12)
    ids, valid = torch.arange(12), torch.ones(12, dtype=torch.bool)
    found = objective.compute(images, captions, ids=ids, valid=valid, phase=objective.final_phase)
    found.loss.backward()
    # A trainer takes them from the result, which waits for no device.
    assert all(number.grad is None for number in objective.learned.values())
    (3 * objective.loss(images, captions)).backward()
    for name, number in objective.learned.items():
        assert number.grad == pytest.approx(3 * float(found.learned[name]), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("images", "captions"), [(3, 4), (0, 4), (0, 0), (3, 0)])
def test_a_batch_of_another_shape_is_refused_in_words(
    kind: str, images: int, captions: int
) -> None:
    rows = torch.ones(images, 4), torch.ones(captions, 4)
    objective = make_objective(kind)
    ids, valid = torch.arange(captions), torch.arange(captions) < 1
    with pytest.raises(ValueError, match="every image must have as many captions"):
        objective.compute(*rows, ids=ids, valid=valid, phase=objective.final_phase)
    with pytest.raises(ValueError, match="every image must have as many captions"):
        objective.loss(*rows)


LARGE = """
import torch
from memory import peak_memory
from torch.nn import functional as F
from vse_scale.objective import make_objective

torch.set_num_threads(1)
sides = [F.normalize(torch.randn(65536, 256), dim=1).requires_grad_() for _ in range(2)]
loss = make_objective({kind!r}).loss(*sides)
loss.backward()
print(float(loss), peak_memory())
"""


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_65536_pairs_fit_into_a_gigabyte(kind: str) -> None:
    """The scores alone would take 17 GB."""
    loss, most = map(float, run_alone(LARGE.format(kind=kind), seconds=1700))
    assert math.isfinite(loss)
    assert most < 1e9
