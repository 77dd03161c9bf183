from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vse_kernels import paired_ranks
from vse_kernels.ranks import paired

TILES = (paired.TILE_QUERIES, paired.TILE_CANDIDATES)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(paired, "TILE_QUERIES", 4)
    monkeypatch.setattr(paired, "TILE_CANDIDATES", 6)


def by_definition(images, captions, owners):
    """One query and one comparison at a time, in float64."""
    scores = images.double().numpy() @ captions.double().numpy().T
    of_images, of_captions = [], []
    for image in range(len(images)):
        own = owners == image
        best = scores[image, own].max(initial=-np.inf)
        of_images.append(1 + int((scores[image, ~own] >= best).sum()) if own.any() else 0)
    for caption, image in enumerate(owners):
        others = np.arange(len(images)) != image
        of_captions.append(1 + int((scores[others, caption] >= scores[image, caption]).sum()))
    return of_images, of_captions


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ranks_equal_their_definition_for_any_number_of_processes(data):
    n_images = data.draw(st.integers(1, 15))
    owners = data.draw(st.lists(st.integers(0, n_images - 1), min_size=1, max_size=30))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # Small integers: exact products, and many ties.
    images = torch.from_numpy(rng.integers(-1, 2, (n_images, 3)).astype(np.float32))
    captions = torch.from_numpy(rng.integers(-1, 2, (len(owners), 3)).astype(np.float32))
    expected = by_definition(images, captions, np.array(owners))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired, "TILE_QUERIES", 4)
        patch.setattr(paired, "TILE_CANDIDATES", 6)
        patch.setattr(paired, "KEPT_TILES", data.draw(st.integers(0, 3)))
        for processes in (1, 2, 3):
            found = shared(images, captions, torch.tensor(owners), processes)
            assert [part.tolist() for part in found] == list(expected)


def shared(images, captions, owners, processes):
    """Run the processes in threads that meet at every reduction."""
    from threading import Barrier, Lock, Thread

    barrier, lock = Barrier(processes), Lock()
    gathered: dict[str, torch.Tensor] = {}
    results: list = [None] * processes

    def across(values, operation):
        barrier.wait()
        with lock:
            if "total" not in gathered:
                gathered["total"] = values.clone()
            elif operation == "max":
                torch.maximum(gathered["total"], values, out=gathered["total"])
            else:
                gathered["total"] += values
        barrier.wait()
        values.copy_(gathered["total"])
        if barrier.wait() == 0:
            gathered.clear()
        barrier.wait()

    def work(number):
        results[number] = paired_ranks(images, captions, owners, (number, processes), across)

    threads = [Thread(target=work, args=(number,)) for number in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))
    return results[0]


@pytest.mark.parametrize("width", [33, 256])
@pytest.mark.parametrize(
    ("images", "captions"),
    [(TILES[0], TILES[1]), (TILES[0] + 1, TILES[1] + 1), (TILES[0] - 1, TILES[1] + 7)],
)
def test_a_collapsed_model_ranks_last_across_tile_boundaries(images, captions, width):
    row = torch.nn.functional.normalize(torch.randn(width, generator=torch.manual_seed(0)), dim=0)
    owners = torch.arange(captions) % images
    for processes in (1, 2):
        of_images, of_captions = shared(
            row.repeat(images, 1), row.repeat(captions, 1), owners, processes
        )
        own = torch.bincount(owners, minlength=images)
        assert torch.equal(of_images, captions - own + 1)
        assert of_captions.unique().tolist() == [images]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype, small_tiles):
    generator = torch.manual_seed(0)
    images = torch.randn(9, 8, generator=generator).to(dtype)
    captions = torch.randn(20, 8, generator=generator).to(dtype)
    owners = torch.arange(20) % 9
    found = paired_ranks(images, captions, owners)
    expected = by_definition(images, captions, owners.numpy())
    assert [part.tolist() for part in found] == list(expected)


def test_a_nan_counts_against_its_query(small_tiles):
    images, captions = torch.eye(5), torch.eye(5).repeat_interleave(2, 0)
    captions[3] = torch.nan
    of_images, of_captions = paired_ranks(images, captions, torch.arange(10) // 2)
    assert of_images.tolist() == [2, 1, 2, 2, 2]  # image 1 has another caption
    assert of_captions[3] == 5


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="image_index"):
        paired_ranks(torch.eye(3), torch.eye(3), torch.arange(2))
    with pytest.raises(ValueError, match="captions"):
        paired_ranks(torch.eye(3), torch.ones(3, 4), torch.arange(3))
    with pytest.raises(TypeError, match="image_index"):
        paired_ranks(torch.eye(3), torch.eye(3), torch.arange(3).float())
