"""``vse-scale doctor``: checks of this machine and of a run before it starts."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from vse_scale.config import Config
from vse_scale.data.decode import image_batches
from vse_scale.data.mixing import Dataset
from vse_scale.errors import UserError
from vse_scale.model.adapters import trained_numbers
from vse_scale.model.blueprint import blueprint
from vse_scale.planning.findings import Finding
from vse_scale.planning.machine import examine_machine
from vse_scale.planning.traffic import size_in_words
from vse_scale.run.folder import RunFolder
from vse_scale.training.checkpoint import Checkpoints, DiskUse
from vse_scale.training.setup import absent_files, open_data

_SAMPLE_IMAGES = 32


def examine(config: Config | None, ranks: int) -> list[Finding]:
    """Check this machine and, with a ``config``, its run on ``ranks`` ranks."""
    findings = [*examine_machine(config, ranks)]
    if config is not None:
        findings += [*_layout(config, ranks), *_run(config, ranks)]
    return findings


def _layout(config: Config, ranks: int) -> Iterator[Finding]:
    try:
        config.check_layout(ranks)
    except UserError as error:
        yield Finding("batch", "fault", str(error))
        return
    pairs = config.data.global_batch // ranks
    images = pairs // config.data.captions_per_image
    pieces = config.engine.micro_batches
    says = f"{config.data.global_batch} pairs over {ranks} ranks: {images} images, {pairs} captions"
    yield Finding("batch", "ok", says + (f" each, in {pieces} pieces" if pieces > 1 else " each"))


def _run(config: Config, ranks: int) -> Iterator[Finding]:
    """Check the run's files, folder, dataset and checkpoints."""
    yield from _files(config)
    folder = Path(config.run.dir)
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if os.access(above, os.W_OK):
        yield _room(config, above)
    else:
        yield Finding("run folder", "fault", f"{above} cannot be written", "run.dir=ANOTHER FOLDER")
    try:
        dataset, validation, plan = open_data(config, ranks)
    except UserError as error:
        yield Finding("dataset", "fault", str(error))
        return
    checked = f"{len(validation)} images to validate on" if validation else "no validation split"
    yield Finding(
        "dataset", "ok",
        f"{len(dataset)} images, {dataset.pairs} pairs, {plan.steps_per_epoch} steps an epoch; "
        f"{checked}; sizes and indices agree with the manifest",
    )  # fmt: skip
    if config.model.image.takes == "images":
        yield _decoding(config, dataset)
    yield _checkpoints(config, dataset)


def _decoding(config: Config, dataset: Dataset) -> Finding:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = config.model.image.image_spec()
    chosen = np.arange(min(_SAMPLE_IMAGES, len(dataset)))
    began = time.perf_counter()
    try:
        batches = image_batches(
            dataset, chosen, spec, batch=len(chosen), device=device, threads=config.data.threads
        )
        decoded = sum(len(batch) for batch in batches)
    except UserError as error:
        return Finding("decoding", "fault", str(error))
    except MemoryError:  # its text may be empty
        what = f"{len(chosen)} images at {spec.size:,} px do not fit into the memory"
        return Finding("decoding", "fault", f"{what}; lower model.image.size")
    seconds = time.perf_counter() - began
    place = "mixed: begins on the CPU, ends on the GPU" if device.type == "cuda" else "on the CPU"
    return Finding(
        "decoding", "ok",
        f"DALI, {place}, {config.data.threads} threads a rank; {decoded} images at {spec.size} px "
        f"in {seconds:.1f} s, its start included",
    )  # fmt: skip


def _checkpoints(config: Config, dataset: Dataset) -> Finding:
    folder = RunFolder(Path(config.run.dir)).checkpoints_folder
    try:
        found = Checkpoints(folder, config.run.keep_checkpoints).newest()
        if found is None:
            return Finding("checkpoints", "ok", "none yet: starts from the first step")
        origin, state = found
        state.check(config, dataset.fingerprint, origin, dataset.grew_from)
    except UserError as error:
        return Finding("checkpoints", "fault", str(error))
    return Finding("checkpoints", "ok", f"goes on after step {state.step - 1}, from {origin}")


def _files(config: Config) -> Iterator[Finding]:
    """Check that the files exist which the model starts from."""
    for key, path in absent_files(config):
        yield Finding("model", "fault", f"{key} is {path}, which does not exist", f"{key}=PATH")


def _room(config: Config, folder: Path) -> Finding:
    try:
        model, _ = blueprint(config)
    except UserError as error:
        return Finding("model", "fault", str(error))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = size_in_words(parameters, trained_numbers(model))
    disk = DiskUse.of(model, config)
    free = shutil.disk_usage(folder).free
    says = (
        f"{size}; {disk.checkpoints} checkpoints and the model "
        f"take {disk.total / 1e9:.2f} GB, {folder} has {free / 1e9:.1f} GB free"
    )
    if disk.total > free:
        return Finding("disk", "fault", says, "run.dir=ANOTHER FOLDER, or run.keep_checkpoints=1")
    return Finding("disk", "ok", says)
