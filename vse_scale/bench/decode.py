"""Stage ``decode``: whole images to S x S pixels, beside OpenCV in threads and DALI alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from vse_scale.bench.comparison import Implementation, Sample, take_turns
from vse_scale.bench.job import Job
from vse_scale.bench.peers import decoded_by_opencv, single_threaded
from vse_scale.bench.rows import Row, make_rows
from vse_scale.data.decode import Decoder, Request
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.pixels import ImageSpec

BATCH = 64
PEER = "OpenCV in threads"


def measure(job: Job) -> Iterator[list[Row]]:
    """Yield the rows at 512 px and at the model's size."""
    folder = str(job.config.data.path)
    for size in sizes(job):
        arguments = {
            "folder": folder, "size": size, "threads": job.cores,
            "count": 8 if job.small else 512,
        }  # fmt: skip
        implementations = [
            Implementation(PEER, opencv, arguments),
            Implementation("DALI alone, CPU", dali, arguments | {"device": "cpu"}),
            Implementation("vse_scale, CPU", ours, arguments | {"device": "cpu"}),
        ]
        if job.device.type == "cuda":
            implementations += [
                Implementation("DALI alone, mixed", dali, arguments | {"device": "cuda"}),
                Implementation("vse_scale, mixed", ours, arguments | {"device": "cuda"}),
            ]
        results = take_turns(implementations, job.repeats, small=job.small)
        yield make_rows(
            job, "decode", f"{size} px, {photos(folder)}", results, peer=PEER, unit="images/s"
        )


def photos(folder: str) -> str:
    """Return the mean size of up to 256 image files, evenly spaced, as a text for the case.

    Ratios depend on it: the larger the files, the more of the time is the same JPEG decoding.
    """
    dataset = ShardDataset(folder, "train")
    chosen = range(0, len(dataset), max(1, len(dataset) // 256))
    return f"photos of {mean(len(dataset.image_bytes(i)) for i in chosen) / 1e3:.0f} kB"


def sizes(job: Job) -> list[int]:
    """Return the published 512 px and the model's size; only the latter in a rehearsal."""
    own = job.config.model.image.size
    return [own] if job.small else sorted({512, own})


def ours(folder: str, size: int, threads: int, count: int, device: str) -> Iterator[Sample]:
    """Decode with the `Decoder` of training and evaluation."""
    dataset = ShardDataset(folder, "train")
    there = torch.device(device)
    requests = (Request(batch, tag=None) for batch in endless(dataset))
    decoder = Decoder(
        dataset, requests, batch=BATCH, spec=ImageSpec.preset("imagenet", size), device=there,
        threads=threads, training=False,
    )  # fmt: skip
    with closing(decoder):
        yield from timed(lambda: len(next(decoder)[0]), count, there)


def dali(folder: str, size: int, threads: int, count: int, device: str) -> Iterator[Sample]:
    """Decode with DALI alone."""
    dataset = ShardDataset(folder, "train")
    batches = ([dataset.image_bytes(int(i)) for i in batch] for batch in endless(dataset))
    pipeline = bare_pipeline(batches, size, threads, device)
    yield from timed(lambda: len(pipeline.run()[0]), count, torch.device(device))


def bare_pipeline(
    batches: Iterator[list[NDArray[np.uint8]]], size: int, threads: int, device: str
) -> Pipeline:
    """Build the smallest graph that decodes and resizes, as in DALI's own benchmark of decoding."""
    pipeline = Pipeline(
        batch_size=BATCH, num_threads=threads, device_id=0 if device == "cuda" else None,
        prefetch_queue_depth=2,
    )  # fmt: skip
    with pipeline:
        encoded = fn.external_source(source=batches, batch=True, dtype=types.UINT8, ndim=1)
        pixels = fn.decoders.image(
            encoded, device="mixed" if device == "cuda" else "cpu", output_type=types.RGB
        )
        pipeline.set_outputs(
            fn.resize(pixels, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=False)
        )
    pipeline.build()
    return pipeline


def opencv(folder: str, size: int, threads: int, count: int) -> Iterator[Sample]:
    """Decode and resize in as many threads; OpenCV's own are off, because they would compete."""
    single_threaded()
    dataset = ShardDataset(folder, "train")
    batches = endless(dataset)

    with ThreadPoolExecutor(threads) as pool:

        def batch() -> int:
            chosen = next(batches)
            pixels = torch.empty((len(chosen), size, size, 3), dtype=torch.uint8)
            rows = pixels.numpy()

            def one(row: int) -> None:
                rows[row] = decoded_by_opencv(dataset.image_bytes(int(chosen[row])), size)

            list(pool.map(one, range(len(chosen))))
            return len(pixels)

        yield from timed(batch, count, torch.device("cpu"))


def endless(dataset: ShardDataset) -> Iterator[NDArray[np.int64]]:
    """Yield batches of image indices, the dataset over and over."""
    indices = itertools.cycle(range(len(dataset)))
    while True:
        yield np.fromiter(itertools.islice(indices, BATCH), dtype=np.int64)


def timed(batch: Callable[[], int], units: int, device: torch.device) -> Iterator[Sample]:
    """Yield a sample of every turn, which calls ``batch`` until ``units`` are done."""
    while True:
        done, began = 0, time.perf_counter()
        while done < units:
            done += batch()
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield Sample(done, time.perf_counter() - began)
