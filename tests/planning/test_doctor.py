"""The doctor finds each fault that it is shown, and names what mends it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commandline import vse_scale

from vse_scale.config import Config
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import ConfigError
from vse_scale.planning import doctor, machine
from vse_scale.planning.doctor import examine
from vse_scale.planning.findings import Finding, faults
from vse_scale.training.setup import check_run

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def config(small_run: Path) -> Config:
    return Config.load(small_run)


def found(findings: list[Finding], what: str) -> Finding:
    (finding,) = [f for f in findings if f.what == what]
    return finding


def test_a_sound_machine_and_run_have_no_fault(config: Config, scenes: Path) -> None:
    findings = examine(config, ranks=2)
    assert not faults(findings)
    assert "80 images, 400 pairs, 10 steps an epoch; 20 images" in found(findings, "dataset").says
    assert found(findings, "batch").says == "16 pairs over 2 ranks: 4 images, 8 captions each"
    assert "32 images at 32 px" in found(findings, "decoding").says
    assert found(findings, "checkpoints").says.startswith("none yet")
    assert importlib.metadata.version("torch") in found(findings, "packages").says


def test_an_old_package_and_one_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def other(name: str) -> str:
        if name == "safetensors":
            raise importlib.metadata.PackageNotFoundError
        return "0.1" if name == "deepspeed" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", other)
    found_faults = faults(examine(None, ranks=1))
    remedies = sorted(fault.remedy or "" for fault in found_faults)
    assert [r.split("'")[1].split(">")[0] for r in remedies] == ["deepspeed", "safetensors"]
    assert all(remedy.startswith("pip install -c constraints.txt") for remedy in remedies)


def test_numbers_beyond_the_machine_are_faults(small_run: Path) -> None:
    config = Config.load(small_run, ["model.image.size=10000000"])
    finding = doctor._decoding(config, ShardDataset(config.data.folders[0], "train"))
    assert finding.state == "fault"
    assert "do not fit into the memory; lower model.image.size" in finding.says
    with pytest.raises(ConfigError, match=r"data\.threads is 100000: .* or equal to 1024"):
        Config.parse({"data": {"path": "x", "threads": 100_000}})


def test_no_compiler(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert found(examine(config, ranks=1), "compiler").state == "ok"
    engine = config.engine.model_copy(update={"compile": True})
    finding = found(examine(config.model_copy(update={"engine": engine}), ranks=1), "compiler")
    assert (finding.state, finding.remedy) == ("fault", "apt-get install g++")


def test_a_containers_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 << 20, 0, 64 << 20))
    finding = found(examine(None, ranks=2), "shared memory")
    assert finding.state == "warning"
    assert "--ipc=host" in (finding.remedy or "")
    assert found(examine(None, ranks=1), "shared memory").state == "ok"


def test_a_full_disk(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - 1000, 1000))
    assert found(examine(config, ranks=1), "disk").state == "fault"


def test_a_taken_port_is_named_with_free_ones(config: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        telemetry = config.telemetry.model_copy(update={"prometheus_port": port - 1})
        finding = found(
            examine(config.model_copy(update={"telemetry": telemetry}), ranks=2), "metrics ports"
        )
    assert finding.state == "warning"
    assert finding.says.startswith(str(port))
    assert (finding.remedy or "").startswith("telemetry.prometheus_port=")


def test_more_threads_than_cores(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)))
    data = config.data.model_copy(update={"threads": 8})
    finding = found(examine(config.model_copy(update={"data": data}), ranks=2), "processor")
    assert (finding.state, finding.remedy) == ("warning", "data.threads=2")


def test_a_driver_without_a_gpu_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    exists = Path.exists
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(
        Path, "exists", lambda path: str(path) == "/proc/driver/nvidia" or exists(path)
    )
    finding = found(examine(None, ranks=1), "GPUs")
    assert finding.state == "fault"
    assert finding.remedy == "pip install -c constraints.txt torch"


def test_gpus_without_the_drivers_video_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    card = SimpleNamespace(name="H100", total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(machine, "_has_video_library", lambda: False)
    findings = examine(None, ranks=4)
    told, refused = [f for f in findings if f.what == "GPUs"]
    assert "2 x H100 (80 GiB)" in told.says
    assert (refused.state, refused.remedy) == ("fault", "vse-scale train --ranks 2 ...")
    assert "video" in (found(findings, "JPEG decoder").remedy or "")


def test_weights_that_are_not_there(small_run: Path) -> None:
    config = Config.load(small_run, ["model.image.weights=no/such.pth"])
    finding = found(examine(config, ranks=1), "model")
    assert (finding.state, finding.remedy) == ("fault", "model.image.weights=PATH")
    assert "no/such.pth" in finding.says


def test_a_checkpoint_of_another_dataset(config: Config) -> None:
    checkpoint = Path(config.run.dir) / "checkpoints" / "step-00000005"
    checkpoint.mkdir(parents=True)
    state = json.dumps({"step": 5, "fingerprint": "0" * 64, "config": {}})
    (checkpoint / "state.json").write_text(state)
    listed = {"bytes": len(state), "sha256": hashlib.sha256(state.encode()).hexdigest()}
    (checkpoint / "files.json").write_text(json.dumps({"state.json": listed}))
    finding = found(examine(config, ranks=2), "checkpoints")
    assert finding.state == "fault"
    assert "fingerprint 000000000000" in finding.says


def test_the_command_prints_a_page_and_json(small_run: Path) -> None:
    page = vse_scale("doctor", "--config", small_run, "--ranks", "2")
    assert page.returncode == 0, page.stderr
    assert "ok       dataset" in page.stdout
    refused = vse_scale(
        *("doctor", "--config", small_run, "--ranks", "3", "--json", "data.path=no/such/place")
    )
    assert refused.returncode == 2
    told = json.loads(refused.stdout)
    assert told["ok"] is False
    states = {finding["what"]: finding["state"] for finding in told["findings"]}
    assert (states["batch"], states["dataset"]) == ("fault", "fault")


def test_what_a_model_starts_from_is_looked_for_before_a_rank_is_started(small_run: Path) -> None:
    for key in ("model.init_from", "model.text.tokenizer"):
        config = Config.load(small_run, [f"{key}=no/such"])
        with pytest.raises(ConfigError, match=f"{key} is no/such, which does not exist"):
            check_run(config, 1)
