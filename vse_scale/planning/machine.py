"""Checks of a machine for ``vse-scale doctor``: packages, GPUs, cores, shared memory, ports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from vse_scale.config import Config
from vse_scale.planning.findings import Finding

# Ranks of a machine exchange through it; Docker gives a container 64 MB.
_SHARED_BYTES_PER_RANK = 256 << 20


def examine_machine(config: Config | None, ranks: int) -> Iterator[Finding]:
    """Check this machine for ``ranks`` ranks, and for the settings of ``config``."""
    yield from _versions()
    yield _compiler(config)
    yield from _gpus(ranks)
    yield _cores(config, ranks)
    yield _shared_memory(ranks)
    yield from _ports(config, ranks)


def _versions() -> Iterator[Finding]:
    says = [f"Python {platform.python_version()}"]
    for line in importlib.metadata.requires("vse-scale") or []:
        requirement = Requirement(line)
        marker = requirement.marker  # of an extra, or another system
        if marker is not None and not marker.evaluate({"extra": "train"}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            yield Finding(
                "packages", "fault",
                f"{requirement} is needed, and {version or 'none'} is installed",
                f"pip install -c constraints.txt '{requirement}'",
            )  # fmt: skip
        elif requirement.name in ("torch", "triton", "deepspeed", "transformers"):
            says.append(f"{requirement.name} {version}")
        elif requirement.name.startswith("nvidia-dali"):
            says.append(f"DALI {version}")
    yield Finding("packages", "ok", ", ".join(says))


def _compiler(config: Config | None) -> Finding:
    """Look for a C compiler: Triton needs one for its launchers, torch.compile for CPU kernels."""
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
            "GPUs", "fault", f"{ranks} ranks need one each", f"vse-scale train --ranks {count} ..."
        )
    if not _has_video_library():
        yield Finding(
            "JPEG decoder", "warning",
            "libnvcuvid.so.1 is not there: DALI decodes on the cores that train, not in hardware",
            "in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility,video",
        )  # fmt: skip


def _has_video_library() -> bool:
    """Whether the driver's library for hardware decoding is there; a container may lack it."""
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
            f"{says}; {ranks} ranks x {threads // ranks} decoding threads need {threads}",
            f"data.threads={cores // ranks}" if ranks <= cores else f"--ranks {cores}",
        )  # fmt: skip
    return Finding("processor", "ok", says)


def _shared_memory(ranks: int) -> Finding:
    room = shutil.disk_usage("/dev/shm")
    says = f"{room.free / 2**20:.0f} of {room.total / 2**20:.0f} MiB of /dev/shm free"
    if ranks > 1 and room.free < ranks * _SHARED_BYTES_PER_RANK:
        return Finding(
            "shared memory", "warning",
            f"{says}; {ranks} ranks may need {ranks * _SHARED_BYTES_PER_RANK >> 20}",
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
