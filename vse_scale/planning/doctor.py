"""``vse-scale doctor``: what this machine and a configuration will do, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from packaging.requirements import Requirement

from vse_scale.config import Config
from vse_scale.data.decode import image_batches
from vse_scale.data.mixing import Dataset
from vse_scale.errors import UserError
from vse_scale.model.blueprint import blueprint
from vse_scale.model.towers.vision import pixels_of
from vse_scale.run.folder import RunFolder
from vse_scale.training.checkpoint import Checkpoints
from vse_scale.training.setup import open_data

# Ranks of a machine exchange through it; Docker gives a container 64 MB.
_SHARED_BYTES_PER_RANK = 256 << 20
_WEIGHT_AND_MOMENTS_BYTES = 12  # a parameter's share of a checkpoint: three float32
_SAMPLE_IMAGES = 32


@dataclass(frozen=True)
class Finding:
    """One line of the page.

    Attributes:
        what: was looked at.
        state: "ok", "warning" (it will run, but worse than it could) or "fault" (it will not).
        says: what was found.
        remedy: what mends it: a command, where there is one.
    """

    what: str
    state: Literal["ok", "warning", "fault"]
    says: str
    remedy: str | None = None


def examine(config: Config | None, ranks: int) -> list[Finding]:
    """Look at this machine, and with a ``config`` at what its run would meet on ``ranks`` ranks."""
    findings = [*_versions(), _compiler(config), *_gpus(ranks), _cores(config, ranks)]
    findings += [_shared_memory(ranks), *_ports(config, ranks)]
    if config is not None:
        findings += [*_layout(config, ranks), *_run(config, ranks)]
    return findings


def page(findings: list[Finding]) -> str:
    """Lay ``findings`` out as text, remedies below what they mend."""
    signs = {"ok": "ok     ", "warning": "warning", "fault": "FAULT  "}
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{signs[finding.state]}  {finding.what:<{width}}  {finding.says}")
        if finding.remedy is not None:
            lines.append(f"{'':<{width + 11}}-> {finding.remedy}")
    return "\n".join(lines)


def as_json(findings: list[Finding]) -> dict[str, object]:
    """Return ``findings`` ready for JSON; ``ok`` says that there is no fault."""
    return {"ok": not faults(findings), "findings": [asdict(finding) for finding in findings]}


def faults(findings: list[Finding]) -> list[Finding]:
    """Return those that keep a run from starting."""
    return [finding for finding in findings if finding.state == "fault"]


def _versions() -> Iterator[Finding]:
    says = [f"Python {platform.python_version()}"]
    for line in importlib.metadata.requires("vse-scale") or []:
        requirement = Requirement(line)
        if requirement.marker is not None:  # an extra, or another system
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            yield Finding(
                "packages", "fault", f"{requirement} is needed, and {version or 'none'} is there",
                f"pip install -c constraints.txt '{requirement}'",
            )  # fmt: skip
        elif requirement.name in ("torch", "triton", "deepspeed", "transformers"):
            says.append(f"{requirement.name} {version}")
        elif requirement.name.startswith("nvidia-dali"):
            says.append(f"DALI {version}")
    yield Finding("packages", "ok", ", ".join(says))


def _compiler(config: Config | None) -> Finding:
    """Look for what Triton compiles its launchers with, and torch.compile its CPU kernels."""
    named = [name for name in (os.environ.get("CC"), "gcc", "clang") if name]
    found = next(filter(None, map(shutil.which, named)), None)
    if found is not None:
        return Finding("compiler", "ok", found)
    if torch.cuda.is_available() or (config is not None and config.engine.compile):
        return Finding("compiler", "fault", "there is no C compiler", "apt-get install g++")
    return Finding("compiler", "ok", "none, and none is needed on a CPU")


def _gpus(ranks: int) -> Iterator[Finding]:
    if not torch.cuda.is_available():
        if Path("/proc/driver/nvidia").exists():
            built = "finds no GPU" if torch.version.cuda else "is built without CUDA"
            yield Finding(
                "GPUs", "fault", f"an NVIDIA driver is there; torch {torch.__version__} {built}",
                "nvidia-smi" if torch.version.cuda else "pip install -c constraints.txt torch",
            )  # fmt: skip
        else:
            yield Finding("GPUs", "ok", "none: float32 on the CPU, over gloo")
        return
    count = torch.cuda.device_count()
    properties = [torch.cuda.get_device_properties(number) for number in range(count)]
    names = sorted({f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in properties})
    yield Finding("GPUs", "ok", f"{count} x {', '.join(names)}, CUDA {torch.version.cuda}, NCCL")
    if ranks > count:
        yield Finding(
            "GPUs", "fault", f"{ranks} ranks want one each", f"vse-scale train --ranks {count} ..."
        )
    if not _has_video_library():
        yield Finding(
            "JPEG decoder", "warning",
            "libnvcuvid.so.1 is not there: DALI decodes on the cores that train, not in hardware",
            "in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility,video",
        )  # fmt: skip


def _has_video_library() -> bool:
    """Whether the driver's part for hardware decoding is installed, or let into a container."""
    import ctypes

    with suppress(OSError):
        ctypes.CDLL("libnvcuvid.so.1")
        return True
    return False


def _cores(config: Config | None, ranks: int) -> Finding:
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory()
    says = f"{cores} cores, {memory.available / 2**30:.0f} of {memory.total / 2**30:.0f} GiB free"
    threads = ranks * config.data.threads if config is not None else 0
    if threads > cores:
        return Finding(
            "processor", "warning",
            f"{says}; {ranks} ranks x {threads // ranks} decoding threads want {threads}",
            f"data.threads={cores // ranks}" if ranks <= cores else f"--ranks {cores}",
        )  # fmt: skip
    return Finding("processor", "ok", says)


def _shared_memory(ranks: int) -> Finding:
    room = shutil.disk_usage("/dev/shm")
    says = f"{room.free / 2**20:.0f} of {room.total / 2**20:.0f} MiB of /dev/shm free"
    if ranks > 1 and room.free < ranks * _SHARED_BYTES_PER_RANK:
        return Finding(
            "shared memory", "warning", f"{says}; {ranks} ranks may want {ranks * 256}",
            "in a container: docker run --ipc=host; elsewhere: mount -o remount,size=8G /dev/shm",
        )  # fmt: skip
    return Finding("shared memory", "ok", says)


def _ports(config: Config | None, ranks: int) -> Iterator[Finding]:
    with socket.socket() as probe:
        try:
            probe.bind((socket.gethostname(), 0))
        except OSError as error:
            yield Finding(
                "host name", "warning",
                f"{socket.gethostname()} is no address of this machine ({error.strerror}); several "
                "machines find each other by name",
                "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
            )  # fmt: skip
    if config is None or config.telemetry.prometheus_port is None:
        return
    base = config.telemetry.prometheus_port
    taken = [port for port in range(base, base + ranks) if not _is_free(port)]
    if not taken:
        yield Finding("metrics ports", "ok", f"{base} to {base + ranks - 1} are free")
        return
    other = next(p for p in range(base, 65536, 16) if all(map(_is_free, range(p, p + ranks))))
    yield Finding(
        "metrics ports", "warning", f"{', '.join(map(str, taken))}: taken, perhaps by another run",
        f"telemetry.prometheus_port={other}",
    )  # fmt: skip


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError, OverflowError):
        # A port that was closed a moment ago can be taken over, as the endpoint does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))
        return True
    return False


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
    """Look at the run's dataset, folder and checkpoints."""
    yield from _files(config)
    folder = Path(config.run.dir)
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if os.access(above, os.W_OK):
        yield _room(config, above)
    else:
        yield Finding("run folder", "fault", f"{above} cannot be written", "run.dir=ELSEWHERE")
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
    if config.model.image.backbone != "regions":
        yield _decoding(config, dataset)
    yield _checkpoints(config, dataset)


def _decoding(config: Config, dataset: Dataset) -> Finding:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = pixels_of(config.model.image)
    chosen = np.arange(min(_SAMPLE_IMAGES, len(dataset)))
    began = time.perf_counter()
    try:
        batches = image_batches(
            dataset, chosen, spec, batch=len(chosen), device=device, threads=config.data.threads
        )
        decoded = sum(len(batch) for batch in batches)
    except UserError as error:
        return Finding("decoding", "fault", str(error))
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
            return Finding("checkpoints", "ok", "none yet: starts anew")
        origin, state = found
        state.check(config, dataset.fingerprint, origin)
    except UserError as error:
        return Finding("checkpoints", "fault", str(error))
    return Finding("checkpoints", "ok", f"goes on after step {state.step - 1}, from {origin}")


def _files(config: Config) -> Iterator[Finding]:
    """Look for what the model is to start from."""
    model = config.model
    named = {
        "model.image.weights": model.image.weights, "model.image.path": model.image.path,
        "model.text.path": model.text.path, "model.text.tokenizer": model.text.tokenizer,
        "model.init_from": model.init_from,
    }  # fmt: skip
    for key, path in named.items():
        if path is not None and not Path(path).exists():
            yield Finding(
                "model", "fault", f"{key} is {path}, which is not there", f"{key}=WHERE IT IS"
            )


def _room(config: Config, folder: Path) -> Finding:
    try:
        model, _ = blueprint(config)
    except UserError as error:
        return Finding("model", "fault", str(error))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # One more than are kept while it is written, and the exported model, old and new.
    files = config.run.keep_checkpoints + 1
    needed = parameters * (files * _WEIGHT_AND_MOMENTS_BYTES + 2 * 4)
    free = shutil.disk_usage(folder).free
    says = (
        f"{parameters / 1e6:.1f} million parameters; {files} checkpoints and the model take "
        f"{needed / 1e9:.2f} GB, {folder} has {free / 1e9:.1f} GB free"
    )
    if needed > free:
        return Finding("disk", "fault", says, "run.dir=ELSEWHERE, or run.keep_checkpoints=1")
    return Finding("disk", "ok", says)
