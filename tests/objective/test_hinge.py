import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vse_scale.objective import global_hinge_loss, hinge_loss


@pytest.mark.parametrize("size", [7, 64])
@pytest.mark.parametrize(("mode", "key"), [("all", "sum"), ("hardest", "max")])
def test_values_and_gradients_are_the_published_ones(shared, size, mode, key):
    reference = np.load(shared / "reference" / f"loss_{size}.npz")
    images, captions = (
        torch.from_numpy(reference[name]).requires_grad_() for name in ("images", "captions")
    )
    loss = hinge_loss(images, captions, margin=float(reference["margin"]), mode=mode)
    loss.backward()
    assert abs(loss.item() - reference[f"loss_{key}"]) < 1e-9 * reference[f"loss_{key}"]
    np.testing.assert_allclose(images.grad, reference[f"grad_images_{key}"], atol=1e-9)
    np.testing.assert_allclose(captions.grad, reference[f"grad_captions_{key}"], atol=1e-9)


def by_definition(images, captions, margin, mode, ids, valid):
    """The loss in plain Python; all numbers are small integers, so sums are exact."""
    total = 0.0
    count = len(images)
    for anchors, others in ((images, captions), (captions, images)):
        for a in range(count):
            if not valid[a]:
                continue
            hinges = [
                max(0.0, margin + anchors[a] @ others[b] - anchors[a] @ others[a])
                for b in range(count)
                if valid[b] and ids[b] != ids[a]
            ]
            total += max(hinges, default=0.0) if mode == "hardest" else sum(hinges)
    return total


@st.composite
def batches(draw):
    """Integer embeddings: ties, duplicates and hinges of exactly zero are frequent."""
    count = draw(st.integers(1, 7))
    whole = st.integers(-2, 2)
    rows = st.lists(st.lists(whole, min_size=3, max_size=3), min_size=count, max_size=count)
    images, captions = (torch.tensor(draw(rows), dtype=torch.float64) for _ in range(2))
    ids = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    valid = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    return images, captions, ids, valid


@pytest.mark.parametrize("mode", ["all", "hardest"])
@settings(max_examples=60, deadline=None)
@given(batch=batches(), margin=st.sampled_from([1.0, 2.0]))
def test_value_is_the_definition_with_ties_duplicates_and_padding(mode, batch, margin):
    images, captions, ids, valid = batch
    expected = by_definition(images.numpy(), captions.numpy(), margin, mode, ids, valid)
    loss = hinge_loss(images, captions, margin=margin, mode=mode, ids=ids, valid=valid)
    assert loss.item() == expected
    mean = hinge_loss(
        images, captions, margin=margin, mode=mode, ids=ids, valid=valid, reduction="mean"
    )
    assert mean.item() == pytest.approx(expected / max(int(valid.sum()), 1))


@pytest.mark.parametrize("mode", ["all", "hardest"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@settings(max_examples=60, deadline=None)
@given(batch=batches(), margin=st.sampled_from([1.0, 2.0]))
def test_the_global_loss_of_one_process_is_the_same_with_its_gradient(
    mode, reduction, batch, margin
):
    images, captions, ids, valid = batch
    grads = []
    for loss_of in (hinge_loss, lambda *a, **k: global_hinge_loss(*a, **k).loss):
        x, y = images.clone().requires_grad_(), captions.clone().requires_grad_()
        loss = loss_of(x, y, margin=margin, mode=mode, reduction=reduction, ids=ids, valid=valid)
        grads.append((loss.detach(), *torch.autograd.grad(loss, (x, y))))
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_equal_negatives_give_the_gradient_to_the_first():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    captions = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.9, 0.1]], requires_grad=True)
    hinge_loss(images, captions, mode="hardest", ids=torch.tensor([0, 1, 1])).backward()
    # Image 0 sees captions 1 and 2 alike; each also pushes itself away from image 0.
    pulled_by_image_0 = captions.grad[1] - captions.grad[2]
    torch.testing.assert_close(pulled_by_image_0, images[0])


def test_an_image_of_several_captions_is_never_its_own_negative():
    row = torch.tensor([[1.0, 0.0]])
    same = hinge_loss(row.repeat(3, 1), row.repeat(3, 1), ids=torch.tensor([4, 4, 4]))
    assert same.item() == 0.0
    different = hinge_loss(row.repeat(3, 1), row.repeat(3, 1))
    assert different.item() == pytest.approx(2 * 6 * 0.2)


@pytest.mark.parametrize(
    ("choice", "message"),
    [({"mode": "max"}, 'mode is "max"'), ({"reduction": "none"}, 'reduction is "none"')],
)
def test_unknown_choices_are_named(choice, message):
    rows = torch.eye(2)
    with pytest.raises(ValueError, match=message):
        hinge_loss(rows, rows, **choice)
    with pytest.raises(ValueError, match=message):
        global_hinge_loss(
            rows, rows, ids=torch.arange(2), valid=torch.ones(2, dtype=torch.bool), **choice
        )


def test_image_rows_are_one_per_caption():
    with pytest.raises(ValueError, match="one image row per caption"):
        hinge_loss(torch.eye(2), torch.eye(4, 2))
