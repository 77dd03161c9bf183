import io

import numpy as np
import pytest
import torch
from PIL import Image

from vse_scale.data.decode import Decoder, Request, image_batches
from vse_scale.data.images import crop_geometry
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import ModelError
from vse_scale.inputs.pixels import ImageSpec

from .conftest import reference

CPU = torch.device("cpu")


def decode(dataset, images, spec, geometry=None):
    request = Request(np.asarray(images), tag="tag", geometry=geometry)
    decoder = Decoder(
        dataset,
        [request],
        batch=len(images),
        spec=spec,
        device=CPU,
        threads=1,
        training=geometry is not None,
    )
    pixels, back = next(decoder)
    assert back is request
    return pixels.numpy()


def assert_close(pixels, expected):
    difference = np.abs(pixels - expected)
    # Rounding costs half a grey level, once after each axis; the rest is for 15-bit weights.
    assert difference.max() <= 1.02
    assert difference.mean() <= 0.3


@pytest.mark.parametrize("size", [32, 96, 224])
def test_evaluation_resizes_the_whole_image(dataset_folder, size):
    dataset = ShardDataset(dataset_folder, "train")
    images = list(range(len(dataset)))
    pixels = decode(dataset, images, ImageSpec.preset("imagenet", size))
    expected = [reference(dataset.image_bytes(i), size) for i in images]
    assert_close(pixels, np.stack(expected))


def test_training_crops_resizes_and_flips_as_published(dataset_folder):
    dataset = ShardDataset(dataset_folder, "train")
    images = list(range(len(dataset)))
    numbers = np.random.default_rng(0).random((len(images), 4), dtype=np.float32)
    geometry = crop_geometry(numbers, (0.6, 1.0), 0.5)
    assert set(geometry[:, 3]) == {0.0, 1.0}
    pixels = decode(dataset, images, ImageSpec.preset("imagenet", 64), geometry)
    expected = [
        reference(dataset.image_bytes(i), 64, g) for i, g in zip(images, geometry, strict=True)
    ]
    assert_close(pixels, np.stack(expected))


def test_real_photos_agree_with_the_reference(shared):
    folder = shared / "data" / "coco_sample" / "images"
    files = sorted(folder.iterdir())[:8]

    class Photos:
        def image_bytes(self, image):
            return np.fromfile(files[image], dtype=np.uint8)

    images = list(range(len(files)))
    numbers = np.random.default_rng(1).random((len(images), 4), dtype=np.float32)
    geometry = crop_geometry(numbers, (0.6, 1.0), 0.5)
    pixels = decode(Photos(), images, ImageSpec.preset("imagenet", 224), geometry)
    expected = [
        reference(Photos().image_bytes(i), 224, g) for i, g in zip(images, geometry, strict=True)
    ]
    assert_close(pixels, np.stack(expected))


def test_antialiasing_is_another_picture(dataset_folder):
    dataset = ShardDataset(dataset_folder, "train")
    plain = decode(dataset, [0], ImageSpec.preset("imagenet", 24))
    smooth = decode(dataset, [0], ImageSpec.preset("imagenet", 24, antialias=True))
    assert np.abs(plain.astype(int) - smooth).max() > 5


def test_the_smallest_crop_of_a_tiny_image_is_a_pixel(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), (200, 30, 90)).save(buffer, "JPEG", quality=100)

    class One:
        def image_bytes(self, image):
            return np.frombuffer(buffer.getvalue(), np.uint8)

    geometry = np.array([[0.6, 0.99, 0.99, 0.0]], np.float32)
    pixels = decode(One(), [0], ImageSpec.preset("imagenet", 4), geometry)
    assert pixels.shape == (1, 4, 4, 3)
    assert np.abs(pixels.astype(int) - [200, 30, 90]).max() <= 3


def test_geometry_has_one_ratio_in_its_bounds():
    numbers = np.random.default_rng(0).random((4000, 4), dtype=np.float32)
    geometry = crop_geometry(numbers, (0.6, 1.0), 0.25)
    assert geometry[:, 0].min() >= np.float32(0.6)
    assert geometry[:, 0].max() <= 1.0
    assert geometry[:, 0].mean() == pytest.approx(0.8, abs=0.01)
    np.testing.assert_array_equal(geometry[:, 1:3], numbers[:, 1:3])
    assert geometry[:, 3].mean() == pytest.approx(0.25, abs=0.03)
    assert not crop_geometry(numbers, (0.6, 1.0), 0.0)[:, 3].any()


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_image_batches_come_in_order_whatever_the_batch(dataset_folder, batch):
    dataset = ShardDataset(dataset_folder, "val")
    spec = ImageSpec.preset("imagenet", 32)
    wanted = [3, 0, 4, 4, 1]
    batches = list(image_batches(dataset, wanted, spec, batch=batch, device=CPU, threads=2))
    assert [len(b) for b in batches[:-1]] == [batch] * (len(batches) - 1)
    single = decode(dataset, list(range(5)), spec)
    np.testing.assert_array_equal(torch.cat(batches).numpy(), single[wanted])


def test_no_images_are_no_batches(dataset_folder):
    dataset = ShardDataset(dataset_folder, "val")
    spec = ImageSpec.preset("imagenet", 32)
    assert list(image_batches(dataset, [], spec, batch=4, device=CPU, threads=1)) == []


def test_kept_pixels_stay_what_they_were(dataset_folder):
    dataset = ShardDataset(dataset_folder, "train")
    spec = ImageSpec.preset("imagenet", 64)
    kept, copies = [], []
    for pixels in image_batches(dataset, np.arange(200) % 23, spec, batch=4, device=CPU, threads=2):
        kept.append(pixels)
        copies.append(pixels.clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@pytest.mark.parametrize("preset", ["imagenet", "detector"])
def test_normalising_equals_float64(preset):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    spec = ImageSpec.preset(preset, 5)
    out = spec.normalise(torch.from_numpy(pixels.copy()))
    values = pixels.astype(np.float64)
    if preset == "imagenet":
        expected = (values / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    else:
        expected = values[..., ::-1] - [102.9801, 115.9465, 122.7717]
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(out.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_specification_survives_json():
    spec = ImageSpec.preset("detector", 512, antialias=True)
    assert ImageSpec.from_dict(spec.to_dict()) == spec
    assert isinstance(spec.to_dict()["mean"], list)


def test_a_wrong_specification_names_the_field():
    raw = ImageSpec.preset("imagenet", 96).to_dict()
    with pytest.raises(ModelError, match="size is 0"):
        ImageSpec.from_dict({**raw, "size": 0})
    with pytest.raises(ModelError, match="colour is 'red'"):
        ImageSpec.from_dict({**raw, "colour": "red"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_nearly_the_same_pixels(dataset_folder):
    dataset = ShardDataset(dataset_folder, "train")
    spec = ImageSpec.preset("imagenet", 96)
    decoded = [
        next(image_batches(dataset, range(23), spec, batch=23, device=device, threads=2)).cpu()
        for device in (CPU, torch.device("cuda"))
    ]
    difference = (decoded[0].int() - decoded[1].int()).abs().float()
    assert difference.mean() <= 1.0
    assert difference.max() <= 12


def test_pixels_that_answer_another_request_are_never_handed_out(dataset_folder):
    dataset = ShardDataset(dataset_folder, "train")
    requests = [Request(np.array([image]), tag=None) for image in range(6)]
    spec = ImageSpec.preset("imagenet", 16)
    decoder = Decoder(dataset, requests, batch=1, spec=spec, device=CPU, threads=1, training=False)
    next(decoder)
    decoder._pending.popleft()  # as if an answer had been lost
    with pytest.raises(RuntimeError, match="not in the order"):
        next(decoder)
