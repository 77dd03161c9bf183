import itertools
from pathlib import Path

import pytest
import torch
from cases import check, drawn_case
from ranks import run_ranks
from torch.nn import functional as F
from warm import WarmGroup

from vse_scale.objective import global_hinge_loss, hinge_loss

PAIRS, DIM = 24, 6


def made_batch(seed):
    """Unit rows with the same image on several ranks, copied rows, and padding."""
    generator = torch.Generator().manual_seed(seed)
    images, captions = (
        F.normalize(torch.randn(PAIRS, DIM, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    ids = torch.randint(0, 14, (PAIRS,), generator=generator)
    # Images 3 and 5 have the same pixels: their rows tie for the hardest negative.
    images = images[ids.where(ids != 3, 5)]
    captions[PAIRS - 1] = captions[2].clone()
    valid = torch.rand(PAIRS, generator=generator) > 0.15
    return images, captions, ids, valid


def shared_images(seed):
    """As `made_batch`, every image with two captions."""
    images, captions, ids, valid = made_batch(seed)
    return images[::2].clone(), captions, ids[::2].repeat_interleave(2), valid


def cases():
    return [
        {"batch": make(seed), "options": {"mode": mode, "reduction": reduction}}
        for seed, mode, reduction, make in itertools.product(
            range(4), ("all", "hardest"), ("sum", "mean"), (made_batch, shared_images)
        )
    ]


def other_objectives(ranks):
    """More cases are drawn in `test_objectives.py`, on ranks that are threads."""
    return [drawn_case(seed, ranks) for seed in range(24)]


def results_of_ranks(folder, ranks):
    torch.save([*cases(), *other_objectives(ranks)], folder / "cases.pt")
    run_ranks(ranks, Path(__file__).with_name("rank_of_negatives.py"), folder, start=WarmGroup)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(ranks)]


def bytes_of_a_step(ranks, mode, images):
    """Embeddings, ids, the choices of "hardest", and five sums for the record; no gradient."""
    share = PAIRS // ranks
    embeddings, ids, sums = (share + images // ranks) * DIM * 8, share * 8, 5 * 8
    choices = share * 2 * 8 if mode == "hardest" else 0
    return (embeddings + ids + choices + sums) * (ranks - 1)


@pytest.mark.parametrize("ranks", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ranks_gives_the_loss_and_gradient_of_one(tmp_path, ranks):
    of_ranks = results_of_ranks(tmp_path, ranks)
    for number, case in enumerate(cases()):
        images, captions, ids, valid = case["batch"]
        images.requires_grad_()
        captions.requires_grad_()
        repeated = images.repeat_interleave(len(captions) // len(images), dim=0)
        expected = hinge_loss(repeated, captions, ids=ids, valid=valid, **case["options"])
        expected.backward()
        results = [result[number] for result in of_ranks]
        for result in results:
            # The same bits everywhere, so that ranks cannot take different decisions.
            assert torch.equal(result["loss"], results[0]["loss"])
            assert result["statistics"] == results[0]["statistics"]
            assert abs(result["loss"] - expected.detach()) < 1e-10
            mode = case["options"]["mode"]
            assert result["bytes"] == bytes_of_a_step(ranks, mode, len(images))
            assert result["seconds"] > 0.0
        for side, own in enumerate((images, captions)):
            together = torch.cat([result["grads"][side] for result in results])
            torch.testing.assert_close(together, own.grad, rtol=0, atol=1e-10)
    rest = [result[len(cases()) :] for result in of_ranks]
    for case, *results in zip(other_objectives(ranks), *rest, strict=True):
        check(case, results)


def test_images_with_different_numbers_of_captions_are_refused():
    images, captions, ids, valid = made_batch(7)
    with pytest.raises(ValueError, match="as many captions"):
        global_hinge_loss(images[:5], captions, ids=ids, valid=valid)


@pytest.mark.parametrize("mode", ["all", "hardest", "semi-hard"])
@pytest.mark.parametrize("margin", [1e-6, 0.2])
def test_padding_may_hold_anything(mode, margin):
    """Row 0 is padding, which is where those that chose no negative point."""
    images, captions, ids, valid = made_batch(8)
    valid[0] = False
    clean = images.clone().requires_grad_(), captions.clone().requires_grad_()
    images[0], captions[0] = torch.nan, torch.inf
    spoilt = images.requires_grad_(), captions.requires_grad_()
    found = [
        global_hinge_loss(*sides, ids=ids, valid=valid, margin=margin, mode=mode).loss
        for sides in (clean, spoilt)
    ]
    assert torch.equal(*found)
    gradients = [
        torch.autograd.grad(loss, sides) for loss, sides in zip(found, (clean, spoilt), strict=True)
    ]
    for wanted, own in zip(*gradients, strict=True):
        assert torch.equal(own, wanted)


def test_statistics_are_those_of_the_definition():
    images, captions, ids, valid = made_batch(11)
    found = global_hinge_loss(images, captions, ids=ids, valid=valid, mode="hardest")
    scores = images @ captions.T
    negative = (ids[:, None] != ids) & valid[:, None] & valid
    hardest = torch.cat(
        [
            scores.masked_fill(~negative, -torch.inf).amax(1)[valid],
            scores.masked_fill(~negative, -torch.inf).amax(0)[valid],
        ]
    )
    positive = scores.diagonal()[valid]
    violating = (0.2 + hardest - positive.repeat(2) > 0).double().mean().item()
    assert found.violating == pytest.approx(violating)
    assert 0.0 < violating < 1.0
    assert found.positive_similarity == pytest.approx(positive.mean().item())
    assert found.hardest_similarity == pytest.approx(hardest.mean().item())
    everything = global_hinge_loss(images, captions, ids=ids, valid=valid, mode="all")
    assert everything.violating == found.violating
    assert found.bytes_sent == 0


@pytest.mark.parametrize("mode", ["all", "hardest"])
def test_autocast_does_not_reach_the_loss(mode):
    images, captions, ids, valid = made_batch(3)
    images, captions = images.float().requires_grad_(), captions.float().requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = global_hinge_loss(images, captions, ids=ids, valid=valid, mode=mode).loss
        results.append((loss.detach(), *torch.autograd.grad(loss, (images, captions))))
    for plain, autocast in zip(*results, strict=True):
        assert torch.equal(plain, autocast)


@pytest.mark.parametrize("mode", ["all", "hardest"])
def test_what_is_not_a_number_shows_in_the_loss(mode):
    images, captions, ids, valid = made_batch(4)
    broken = int(valid.nonzero()[0, 0])
    images[broken] = torch.nan
    assert global_hinge_loss(images, captions, ids=ids, valid=valid, mode=mode).loss.isnan()


@pytest.mark.parametrize("mode", ["all", "hardest"])
def test_a_batch_of_padding_costs_nothing(mode):
    images, captions, ids, _ = made_batch(5)
    images.requires_grad_()
    nobody = torch.zeros(PAIRS, dtype=torch.bool)
    found = global_hinge_loss(images, captions, ids=ids, valid=nobody, mode=mode, reduction="mean")
    found.loss.backward()
    assert found.loss.item() == 0.0
    assert not images.grad.any()
    assert found.violating == 0.0
