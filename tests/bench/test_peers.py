"""Peers do the same work: the same pixels, ids, losses and ranks as the library's own."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vse_kernels import paired_ranks
from vse_scale.bench.decode import bare_pipeline
from vse_scale.bench.evaluate import WholeImages, encoded_captions, encoded_images, sorted_ranks
from vse_scale.bench.job import Job
from vse_scale.bench.peers import Pairs, Recipe, decoded_by_opencv, order, webdataset_samples
from vse_scale.bench.plain import PlainModel, PlainTrainer, plain_loss
from vse_scale.bench.setting import open_split, ready, recipe_of
from vse_scale.config import Config
from vse_scale.data.decode import image_batches
from vse_scale.data.loader import Batch, Loader
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.inputs.spec import InputSpec
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.objective import hinge_loss
from vse_scale.retrieval.encode import encode_split

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(job: Job) -> Config:
    return ready(job)


def our_batches(config: Config, recipe: Recipe, count: int) -> list[Batch]:
    spec = InputSpec(ImageSpec.preset("imagenet", recipe.size))
    with Loader(
        recipe.dataset, recipe.plan, recipe.tokenizer, spec, config.data,
        seed=config.run.seed, rank=0, ranks=1, device=CPU, grid_cells=recipe.grid_cells,
    ) as batches:  # fmt: skip
        return list(itertools.islice(batches, count))


def published(recipe: Recipe) -> Iterator[dict[str, torch.Tensor]]:
    """The batch of its workers, without forking them from a process that has DALI's threads."""
    pairs = Pairs(recipe)
    for items in order(recipe):
        yield pairs.collate([pairs[item] for item in items])


def grey_levels(left: torch.Tensor, right: torch.Tensor) -> int:
    return int((left.int() - right.int()).abs().max())


def test_the_published_data_path_makes_our_batches(config: Config) -> None:
    recipe = recipe_of(config, str(config.model.init_from), 64, grid_cells=16)
    for ours, other in zip(our_batches(config, recipe, 8), published(recipe), strict=False):
        assert ours.images.shape == (20, 64, 64, 3)
        assert grey_levels(ours.images, other.pop("images")) <= 1
        assert sorted(other) == ["cell_draws", "image_ids", "token_ids", "token_lengths"]
        for name, value in other.items():
            assert torch.equal(getattr(ours, name), value), name


def test_whole_images_are_the_same_to_all_decoders(photos: Path, config: Config) -> None:
    dataset = open_split(config, "train")
    spec = ImageSpec.preset("imagenet", 80)
    (ours,) = image_batches(dataset, range(8), spec, batch=8, device=CPU, threads=1)
    encoded = [dataset.image_bytes(image) for image in range(8)]
    by_opencv = [torch.from_numpy(decoded_by_opencv(image, 80)) for image in encoded]
    assert grey_levels(ours, torch.stack(by_opencv)) <= 1
    (by_dali,) = bare_pipeline(iter([encoded]), 80, 1, "cpu").run()
    assert grey_levels(ours, torch.from_numpy(by_dali.as_array())) <= 1


def test_webdataset_gives_images_of_the_set(config: Config) -> None:
    data = config.data.model_copy(update={"crop_scale": (1.0, 1.0), "flip": 0.0})
    recipe = recipe_of(config.model_copy(update={"data": data}), str(config.model.init_from), 64)
    pixels, ids = next(iter(webdataset_samples(recipe)))
    assert (pixels.shape, pixels.dtype) == ((20, 64, 64, 3), torch.uint8)
    assert len(ids) == 20
    whole = []
    for image in range(len(recipe.dataset)):
        encoded = recipe.dataset.image_bytes(image).tobytes()
        opened = Image.open(io.BytesIO(encoded))
        whole.append(np.array(opened.resize((64, 64), Image.Resampling.BILINEAR)))
    known = torch.from_numpy(np.stack(whole))
    for picture in pixels:
        assert any(torch.equal(picture, one) for one in known)


@pytest.mark.parametrize("mode", ["all", "hardest"])
def test_the_plain_loss_is_ours(mode: str) -> None:
    torch.manual_seed(0)
    images, captions = (
        torch.nn.functional.normalize(torch.randn(30, 8, dtype=torch.float64)) for _ in range(2)
    )
    ids = torch.arange(30) // 2
    found = plain_loss(images, captions, ids, hardest=mode == "hardest")
    assert found == pytest.approx(float(hinge_loss(images, captions, mode=mode, ids=ids)), 1e-12)


@pytest.mark.parametrize("our_pooling", [False, True])
def test_a_step_from_the_same_weights_has_our_loss(config: Config, our_pooling: bool) -> None:
    start = str(config.model.init_from)
    model = VSEModel.from_pretrained(start).train()
    recipe = recipe_of(config, start, model.image_spec.size, model.grid_cells)
    (batch,) = our_batches(config, recipe, 1)
    images, captions = model(
        model.image_spec.normalise(batch.images), batch.token_ids, batch.token_lengths,
        batch.cell_draws,
    )  # fmt: skip
    expected = hinge_loss(images, captions, mode="hardest", ids=batch.image_ids)
    expected.backward()
    gradient = model.image.projection.weight.grad.clone()

    trainer = PlainTrainer(
        VSEModel.from_pretrained(start), 1e-3, 10, warmup_epochs=0, our_pooling=our_pooling
    )
    assert float(trainer.backward(batch, 0)) == pytest.approx(expected.item(), rel=1e-5)
    found = trainer.model.image.projection.weight.grad
    assert torch.allclose(found, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    # Its own data path differs by a grey level here and there.
    own = next(published(recipe))["images"]
    assert float(trainer.backward(replace(batch, images=own), 0)) == pytest.approx(
        expected.item(), rel=0.01
    )


def test_the_published_loop_finds_our_embeddings_and_ranks(config: Config) -> None:
    model = VSEModel.from_pretrained(str(config.model.init_from))
    tokenizer = CaptionTokenizer.load(str(config.model.init_from))
    dataset = open_split(config, "train")
    ours = encode_split(model, tokenizer, dataset, batch=16, device=CPU, threads=1)
    image_of_caption = ours.caption_to_image.numpy()
    plain = PlainModel(model).eval()
    with torch.no_grad():
        pictures = WholeImages(dataset, model.image_spec.size)
        rows = torch.stack([pictures[image] for image in image_of_caption])
        per_pair = encoded_images(plain, model.image_spec, rows.split(16))
        captions = encoded_captions(plain, tokenizer, dataset, config, CPU)
    assert np.abs(captions - ours.captions.numpy()).max() < 1e-5
    assert np.abs(per_pair - ours.images.numpy()[image_of_caption]).max() < 0.01

    rng = np.random.default_rng(0)
    images, captions = (rng.normal(size=(n, 6)).astype(np.float32) for n in (12, 60))
    image_of_caption = np.repeat(np.arange(12), 5)
    found = sorted_ranks(images, captions, image_of_caption)
    expected = paired_ranks(*map(torch.from_numpy, (images, captions, image_of_caption)))
    for ranks, own in zip(found, expected, strict=True):
        assert (ranks + 1 == own.numpy()).all()
