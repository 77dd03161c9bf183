from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks

from vse_scale.errors import DatasetError
from vse_scale.retrieval import encode
from vse_scale.retrieval.encode import encode_split, share_of

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from encode_fakes import FakeDataset, FakeTokenizer, make_model, read_images  # noqa: E402


@pytest.fixture(autouse=True)
def fake_images(monkeypatch):
    monkeypatch.setattr(encode, "image_batches", read_images)


def encode_fake(images=21, batch=4, model=None, **options):
    return encode_split(
        model or make_model(),
        FakeTokenizer(),
        FakeDataset(images),
        batch=batch,
        device="cpu",
        threads=1,
        **options,
    )


def test_every_row_is_its_own_embedding_in_the_order_of_the_dataset():
    dataset, model, tokenizer = FakeDataset(21), make_model().eval(), FakeTokenizer()
    found = encode_fake()

    texts = [caption.text for record in dataset.records for caption in record.captions]
    with torch.no_grad():
        for row in range(21):
            (pixels,) = read_images(dataset, [row], None, batch=1, device="cpu", threads=1)
            expected = model.encode_images(model.input_spec.pixels.normalise(pixels))
            torch.testing.assert_close(found.images[row], expected[0], rtol=1e-5, atol=1e-6)
        for row, text in enumerate(texts):
            expected = model.encode_captions(*map(torch.from_numpy, tokenizer.encode([text])))
            torch.testing.assert_close(found.captions[row], expected[0], rtol=1e-5, atol=1e-6)

    assert found.image_ids == tuple(f"image-{row}" for row in range(21))
    assert found.caption_ids == tuple(range(1000, 1000 + len(texts)))
    assert found.caption_to_image.bincount(minlength=21).tolist() == [n % 4 for n in range(21)]
    assert found.caption_to_image.tolist() == sorted(found.caption_to_image.tolist())
    assert found.images.dtype == found.captions.dtype == torch.float32
    assert not found.images.requires_grad


def test_captions_of_like_length_share_a_batch():
    model = make_model()
    encode_fake(model=model)
    lengths = [length for batch in model.caption_batches for length in batch]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("training", [True, False])
def test_model_keeps_its_mode(training):
    model = make_model().train(training)
    first, second = encode_fake(model=model), encode_fake(model=model)
    assert model.training is training
    assert torch.equal(first.images, second.images)  # its dropout was off


def test_long_captions_are_cut():
    model = make_model()
    model.input_spec = replace(model.input_spec, max_tokens=5)
    encode_fake(model=model)
    assert max(max(batch) for batch in model.caption_batches) == 5


def test_progress_runs_from_zero_to_all():
    calls = []
    encode_fake(progress=lambda *call: calls.append(call))
    images = [call for call in calls if call[0] == "images"]
    assert images == [("images", done, 21) for done in (0, 4, 8, 12, 16, 20, 21)]
    assert calls[len(images)] == ("captions", 0, 30)
    assert calls[-1] == ("captions", 30, 30)


@settings(max_examples=200, deadline=None)
@given(total=st.integers(1, 90), batch=st.integers(1, 20), ranks=st.integers(1, 6))
def test_shares_hold_the_same_batches_for_any_number_of_ranks(total, batch, ranks):
    whole = [list(range(start, min(start + batch, total))) for start in range(0, total, batch)]
    found, calls = [], set()
    for rank in range(ranks):
        share = share_of(total, batch, rank, ranks)
        rows = share.rows(batch).tolist()
        batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        assert all(repeat == whole[0] for repeat in batches[: share.repeats])
        own = [row for rows in batches[share.repeats :] for row in rows]
        assert own == list(range(share.start, share.stop))
        found += batches[share.repeats :]
        calls.add(len(batches))
    assert found == whole
    assert len(calls) == 1  # a collective inside the model meets all ranks


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_equal_one_to_the_bit(ranks, tmp_path):
    run_ranks(ranks, HERE / "encode_ranks.py", tmp_path)

    alone = vars(encode_fake())
    for rank in range(ranks):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name in ("images", "captions", "caption_to_image"):
            assert torch.equal(found[name], alone[name])
        assert found["caption_ids"] == alone["caption_ids"]


@pytest.mark.parametrize(("rank", "ranks"), [(0, 2), (1, 1), (-1, 1)])
def test_ranks_must_be_those_of_the_process_group(rank, ranks):
    with pytest.raises(ValueError, match=f"rank {rank} of {ranks}, but the process group has 1"):
        encode_fake(rank=rank, ranks=ranks)


def test_a_split_without_captions_is_refused():
    with pytest.raises(DatasetError, match="split 'val' has no captions"):
        encode_split(
            make_model(),
            FakeTokenizer(),
            FakeDataset(3, captions=False),
            batch=4,
            device="cpu",
            threads=1,
        )
