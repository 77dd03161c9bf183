import threading

import numpy as np
import pytest
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from PIL import Image

from vse_scale.data.resize import Resizer, resize
from vse_scale.inputs.pixels import ImageSpec

# Up, down, both at once, by a little, odd, and as small as can be.
SHAPES = [(480, 640), (97, 33), (31, 200), (224, 223), (2, 3), (1, 50), (50, 1), (1, 1)]


def resized(image, size, antialias=False, flipped=False):
    out = torch.empty(size, size, 3, dtype=torch.uint8)
    resize(torch.from_numpy(image), out, antialias=antialias, flipped=flipped)
    return out.numpy()


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def furthest(left, right):
    return np.abs(left.astype(int) - right).max()


def pillow(image, size):
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def dali(images, size):
    """The resize of the GPU's graph, with the CPU's kernel."""
    pipeline = Pipeline(batch_size=len(images), num_threads=1, device_id=None)
    with pipeline:
        pixels = fn.external_source(
            source=[images], dtype=types.UINT8, ndim=3, layout="HWC", batch=True
        )
        pixels = fn.resize(
            pixels, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=False
        )
        pipeline.set_outputs(pixels)
    pipeline.build()
    return pipeline.run()[0].as_array()


@pytest.mark.parametrize("size", [1, 7, 96, 224, 512])
@pytest.mark.parametrize("shape", SHAPES)
def test_noise_agrees_with_opencv(shape, size):
    cv2 = pytest.importorskip("cv2")
    image = noise(shape)
    expected = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    assert furthest(resized(image, size), expected) <= 1


@pytest.mark.parametrize("size", [1, 7, 96, 512])
@pytest.mark.parametrize("shape", SHAPES)
def test_smoothed_noise_agrees_with_pillow(shape, size):
    image = noise(shape)
    assert furthest(resized(image, size, antialias=True), pillow(image, size)) <= 1


@pytest.mark.parametrize("size", [96, 224, 512])
def test_crops_of_photos_agree_with_opencv_and_pillow(shared, size):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(size)
    for file in sorted((shared / "data" / "coco_sample" / "images").iterdir())[:12]:
        image = np.asarray(Image.open(file).convert("RGB"))
        height, width = (np.array(image.shape[:2]) * rng.uniform(0.6, 1)).astype(int)
        crop = image[3 : 3 + height, 5 : 5 + width]
        plain = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
        assert furthest(resized(crop.copy(), size), plain) <= 1
        assert furthest(resized(crop.copy(), size, flipped=True), plain[:, ::-1]) <= 1
        smooth = pillow(crop, size)
        assert furthest(resized(crop.copy(), size, antialias=True), smooth) <= 1


@pytest.mark.parametrize("size", [7, 96, 512])
def test_the_graph_of_a_gpu_resizes_alike(size):
    images = [noise(shape) for shape in SHAPES]
    for image, expected in zip(images, dali(images, size), strict=True):
        assert furthest(resized(image, size), expected) <= 1


def test_flipping_is_of_left_and_right():
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, :2, 0] = 200
    np.testing.assert_array_equal(resized(image, 12, flipped=True), resized(image, 12)[:, ::-1])


def threads_named(prefix):
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


@pytest.fixture
def resizer():
    resizer = Resizer(8, ImageSpec.preset("imagenet", 640), threads=2)
    yield resizer
    resizer.close()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_change_nothing(threads):
    images = [torch.from_numpy(noise(shape)) for shape in SHAPES]
    flipped = np.arange(len(images)) % 3 == 0
    resizer = Resizer(10, ImageSpec.preset("imagenet", 33), threads)
    pixels = resizer(images, flipped)
    resizer.close()
    assert pixels.shape == (8, 33, 33, 3)
    for image, flip, row in zip(images, flipped, pixels.numpy(), strict=True):
        np.testing.assert_array_equal(row, resized(image.numpy(), 33, flipped=bool(flip)))


def test_closing_ends_the_threads(resizer):
    resizer([torch.from_numpy(noise((9, 9)))], np.array([False]))
    assert threads_named("vse-resize")
    resizer.close()
    resizer.close()
    assert not threads_named("vse-resize")


def test_the_caller_keeps_its_own_number_of_threads(resizer):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    resizer([torch.from_numpy(noise((9, 9)))], np.array([False]))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_memory_is_used_again_only_once_nothing_shows_it(resizer):
    image, plain = [torch.from_numpy(noise((9, 9)))], np.array([False])
    black = [torch.zeros(9, 9, 3, dtype=torch.uint8)]
    first = resizer(image, plain)
    place, before = first.data_ptr(), first.clone()
    view = first.permute(0, 3, 1, 2)[0, 1]
    del first
    kept = resizer(black, plain)
    assert kept.data_ptr() != place
    assert torch.equal(view, before[0, :, :, 1])
    del view
    again = resizer(black, plain)
    assert again.data_ptr() == place
    assert not again.any()
