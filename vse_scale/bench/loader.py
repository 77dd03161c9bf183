"""Stage ``loader``: batches for training, pixels in uint8 and token ids, beside a DataLoader.

Every implementation decodes an image per pair, crops, resizes and flips it, and tokenises a caption
with words dropped, by the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from vse_scale.bench.comparison import Implementation, Sample, take_turns
from vse_scale.bench.decode import photos, sizes, timed
from vse_scale.bench.job import Job
from vse_scale.bench.peers import opencv_batches, webdataset_batches
from vse_scale.bench.rows import Row, make_rows
from vse_scale.bench.setting import changed, recipe_of, tokenizer_of
from vse_scale.config import Config
from vse_scale.data.loader import Loader
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.inputs.spec import InputSpec

PEER = "OpenCV in DataLoader workers"


def measure(job: Job) -> Iterator[list[Row]]:
    """Yield the rows at 512 px and at the model's size."""
    config = changed(job.config, data={"mode": "pairs", "captions_per_image": 1})
    for size in sizes(job):
        arguments = {
            "config": config, "tokenizer": tokenizer_of(job), "size": size, "threads": job.cores,
            "count": 8 if job.small else 480,
        }  # fmt: skip
        implementations = [
            Implementation(PEER, opencv, arguments),
            Implementation("webdataset + Pillow", pillow, arguments),
            Implementation("vse_scale, CPU", ours, {**arguments, "device": torch.device("cpu")}),
        ]
        if job.device.type == "cuda":
            implementations.append(
                Implementation("vse_scale, mixed", ours, {**arguments, "device": job.device})
            )
        results = take_turns(implementations, job.repeats, small=job.small)
        of = photos(str(config.data.path))
        case = f"{size} px, {of}, {job.cores} threads or workers"
        yield make_rows(job, "loader", case, results, peer=PEER, unit="images/s")


def ours(
    config: Config, tokenizer: Path, size: int, threads: int, count: int, device: torch.device
) -> Iterator[Sample]:
    """Take batches from the `Loader`, decoded on ``device``."""
    recipe = recipe_of(config, tokenizer, size)
    spec = InputSpec(ImageSpec.preset("imagenet", size), max_tokens=config.data.max_caption_tokens)
    data = config.data.model_copy(update={"threads": threads})
    with Loader(
        recipe.dataset, recipe.plan, recipe.tokenizer, spec, data, seed=config.run.seed,
        rank=0, ranks=1, device=device,
    ) as batches:  # fmt: skip
        yield from timed(lambda: len(next(batches).images), count, device)


def opencv(
    config: Config, tokenizer: Path, size: int, threads: int, count: int
) -> Iterator[Sample]:
    """Take batches from the published data path, with as many workers."""
    cpu = torch.device("cpu")
    batches = opencv_batches(recipe_of(config, tokenizer, size), workers=threads, device=cpu)
    yield from timed(lambda: len(next(batches).images), count, cpu)


def pillow(
    config: Config, tokenizer: Path, size: int, threads: int, count: int
) -> Iterator[Sample]:
    """Take batches from webdataset, with as many workers."""
    batches = webdataset_batches(recipe_of(config, tokenizer, size), workers=threads)
    yield from timed(lambda: len(next(batches)[0]), count, torch.device("cpu"))
