"""Faults at random moments of whole runs: they end as if nothing had been, or say why they do not.

After pytorch/torchtitan#1035 (a kill while a checkpoint is written), Lightning-AI/pytorch-lightning
#21110 (a folder that is gone while a run writes into it) and pytorch/pytorch#99215 (a stopped rank
that nobody notices).
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from launching import assert_same_bits, random_run
from ranks import free_port
from safetensors.torch import load_file
from warm import WarmGroup, training

from vse_scale.run.journal import read_journal
from vse_scale.training.checkpoint import TENSORS

DRAWS = int(os.environ.get("CHAOS_DRAWS", "40"))  # each fault at least twice
FIRST = int(os.environ.get("CHAOS_FIRST", "0"))  # seed of the first draw
AT_ONCE = 3  # draws that run side by side: many of them wait
STEPS, TIMEOUT = 20, 10
ANOTHER_USER = 12345


@dataclass
class Draw:
    """One run that is disturbed, and the same command again until it is over.

    Attributes:
        seed: of all that is drawn.
        config: of the run.
        folder: of the run; logs lie beside it.
        ranks: how many.
        heal: calls that mend what the fault left, the last first.
    """

    seed: int
    config: Path
    folder: Path
    ranks: int
    heal: list[Callable[[], None]] = field(default_factory=list)
    starts: int = 0
    rest: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def start(self) -> WarmGroup:
        self.starts += 1
        log = self.folder.with_name(f"{self.folder.name}-{self.starts}.log")
        return training(
            self.ranks, log, "--max-restarts", "9", "--config", self.config,
            f"run.dir={self.folder}", *self.rest, plain_user=True,
        )  # fmt: skip

    def wait_for_a_moment(self, run: WarmGroup) -> None:
        """Wait for a moment that is drawn: of the start, of a step, or of what is being written."""
        kind = self.random.choice(("start", "step", "step", "checkpoint", "model", "end"))
        if kind == "start":
            time.sleep(self.random.uniform(0.0, 2.0))
        elif kind == "step":
            run.wait_for_words("checkpoint ", times=self.random.randint(1, 4))
            time.sleep(self.random.uniform(0.0, 0.5))
        elif kind == "end":
            run.wait_for_words("epoch 2: ")
        else:
            inside = self.folder / "checkpoints" if kind == "checkpoint" else self.folder
            name = ".step-*.partial" if kind == "checkpoint" else ".model.partial"
            run.wait_for(lambda: any(inside.glob(name)), 200)

    def processes(self) -> list[psutil.Process]:
        """All that belong to the run: supervisor, launcher, ranks, in this order."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and any(
                    part == f"run.dir={self.folder}" for part in process.cmdline()
                ):
                    found.append(process)
        order = ("vse_scale.training.launcher", "vse_scale.training")
        return sorted(found, key=lambda p: [name in _cmdline(p) for name in reversed(order)])

    def of(self, what: str) -> psutil.Process | None:
        """One process of the run: "supervisor", "launcher" or "rank"; None while there is none."""
        kinds: dict[str, list[psutil.Process]] = {"supervisor": [], "launcher": [], "rank": []}
        for process in self.processes():
            line = _cmdline(process)
            at = line[line.index("-m") + 1] if "-m" in line else ""
            kinds[
                {"vse_scale.training": "rank", "vse_scale.training.launcher": "launcher"}.get(
                    at, "supervisor"
                )
            ].append(process)
        return self.random.choice(kinds[what]) if kinds[what] else None


def _cmdline(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def sends(what: str, number: int) -> Callable[[Draw, WarmGroup], None]:
    def disturb(draw: Draw, run: WarmGroup) -> None:
        draw.wait_for_a_moment(run)
        process = draw.of(what)
        if process is not None:
            with suppress(psutil.Error):
                process.send_signal(number)

    return disturb


def full_disk(draw: Draw, run: WarmGroup) -> None:
    """From a moment on no file grows beyond a size."""
    draw.wait_for_a_moment(run)
    limit = draw.random.randint(1 << 14, 1 << 17)
    for process in draw.processes():
        with suppress(psutil.Error, OSError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))


def removed(draw: Draw, run: WarmGroup) -> None:
    draw.wait_for_a_moment(run)
    # What is written meanwhile may stand in the way.
    aside = draw.folder.with_name(f"{draw.folder.name}-removed")
    with suppress(FileNotFoundError):
        draw.folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def read_only(draw: Draw, run: WarmGroup) -> None:
    draw.wait_for_a_moment(run)
    folders = [p for p in (draw.folder, *draw.folder.rglob("*")) if p.is_dir()]
    for path in folders:
        with suppress(FileNotFoundError):
            path.chmod(0o555)
    draw.heal.append(lambda: _each(draw.folder, lambda p: p.chmod(0o755 if p.is_dir() else 0o644)))


def anothers(draw: Draw, run: WarmGroup) -> None:
    """All files there become another user's, who shares none of them."""
    draw.wait_for_a_moment(run)

    def take(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, ANOTHER_USER, ANOTHER_USER)
        path.chmod(0o700 if path.is_dir() else 0o600)

    def give_back(path: Path) -> None:
        os.chown(path, os.geteuid(), os.getegid())

    _each(draw.folder, take)
    draw.heal.append(lambda: _each(draw.folder, give_back))


def _each(folder: Path, change: Callable[[Path], None]) -> None:
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            change(path)


def clock_back(draw: Draw, run: WarmGroup) -> None:
    """All files are of another time, as after the clock was set; then a rank dies."""
    draw.wait_for_a_moment(run)
    moved = draw.random.choice((-3e6, -4e3, 4e3, 3e6))

    def move(path: Path) -> None:
        when = path.stat().st_mtime + moved
        os.utime(path, (when, when))

    _each(draw.folder, move)
    sends("rank", signal.SIGKILL)(draw, run)


def two_starts(draw: Draw, run: WarmGroup) -> None:
    """The same command while the first goes on: one of the two, or the later, is refused."""
    time.sleep(draw.random.choice((0.0, 0.05, 0.5, 2.0)))
    with draw.start() as second:
        codes = [second.wait(200), run.wait(200)]
        assert sorted(codes) in ([0, 0], [0, 2]), second.said() + run.said()
        for group, code in zip((second, run), codes, strict=True):
            if code == 2:
                assert "trains in; wait for it or stop it" in group.said()


def started_over_a_corpse(draw: Draw, run: WarmGroup) -> None:
    """The same command in the moment in which the supervisor was killed."""
    sends("supervisor", signal.SIGKILL)(draw, run)


def nothing(draw: Draw, run: WarmGroup) -> None:
    """The metrics' port is taken."""


# What is done, and the exit codes that may follow.
FAULTS: dict[str, tuple[Callable[[Draw, WarmGroup], None], tuple[int, ...]]] = {
    "kill of the supervisor": (sends("supervisor", signal.SIGKILL), (-9, 0)),
    "kill of the launcher": (sends("launcher", signal.SIGKILL), (0,)),
    "kill of a rank": (sends("rank", signal.SIGKILL), (0,)),
    "stop of a rank": (sends("rank", signal.SIGSTOP), (0,)),
    "SIGTERM": (sends("supervisor", signal.SIGTERM), (75, 0)),
    "SIGHUP": (sends("supervisor", signal.SIGHUP), (75, 0)),
    "SIGTERM of a rank": (sends("rank", signal.SIGTERM), (0,)),
    "full disk": (full_disk, (2, 0)),
    "folder removed": (removed, (2, 0)),
    "folder read-only": (read_only, (2, 0)),
    "files of another user": (anothers, (2, 0)),
    "clock set back": (clock_back, (0,)),
    "two starts": (two_starts, (0, 2)),
    "kill and start at once": (started_over_a_corpse, (-9, 0)),
    "port taken": (nothing, (0,)),
}


def disturbed(draw: Draw, whole: Path) -> None:
    """Disturb a run, start it again until it is over, and compare it with ``whole``."""
    name = sorted(FAULTS)[draw.seed % len(FAULTS)]
    disturb, codes = FAULTS[name]
    with socket.socket() as taken:
        port = free_port()
        if name == "port taken":
            taken.bind(("127.0.0.1", port))
            taken.listen()
        draw.rest = (f"telemetry.prometheus_port={port}",) if name == "port taken" else ()
        with draw.start() as run:
            disturb(draw, run)
            code = run.wait(240)
            said = run.said()
            assert code in codes, f"exit code {code}:\n{said[-3000:]}"
            assert_a_line(code, said)
            if name == "kill and start at once" and code:
                with draw.start() as second:
                    assert second.wait(200) == 0, second.said()[-3000:]
            deadline = time.monotonic() + 20
            while (left := draw.processes()) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not left, f"{len(left)} processes are left"
    refused = draw.heal and name in ("folder read-only", "files of another user") and code == 2
    if refused:
        with draw.start() as again:
            assert again.wait(200) == 2, again.said()[-3000:]
            assert_a_line(2, again.said())
    for heal in draw.heal:
        heal()
    with draw.start() as again:
        assert again.wait(240) == 0, f"started again:\n{again.said()[-3000:]}"
        assert_a_line(0, again.said())
    assert_whole(draw.folder, whole)


def assert_a_line(code: int, said: str) -> None:
    """A refusal is one line; a rank's death, which is tried again, may show its traceback."""
    lines = [line for line in said.splitlines() if "vse-scale: error: " in line]
    assert len(lines) == (code == 2), said[-3000:]
    if code in (0, 2, 75) and "starting it again" not in said:
        assert "Traceback" not in said, said[-3000:]


def assert_whole(run: Path, whole: Path) -> None:
    """The same weights to the bit, the records of an undisturbed run, and nothing beside them."""
    states = [
        load_file(folder / "checkpoints" / "step-00000020" / TENSORS) for folder in (run, whole)
    ]
    assert_same_bits(*states)
    assert_same_bits(
        *(load_file(folder / "model" / "model.safetensors") for folder in (run, whole))
    )
    for name, kept in (
        ("metrics.jsonl", ("step", "loss")),
        ("evaluations.jsonl", ("step", "rsum")),
    ):
        ours, theirs = (
            [[record[key] for key in kept] for record in read_journal(folder / name)]
            for folder in (run, whole)
        )
        assert ours == theirs, name
    results = [json.loads((folder / "results.json").read_text()) for folder in (run, whole)]
    for key in ("rsum", "steps", "pairs", "final_loss"):
        assert results[0][key] == results[1][key]
    names = [{p.name for p in folder.iterdir()} - {"tensorboard"} for folder in (run, whole)]
    assert names[0] == names[1]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Path]]:
    """A configuration that draws at random wherever it can; runs of it on one and two ranks."""
    from datasets_made import drawn_scenes

    folder = tmp_path_factory.mktemp("chaos")
    config = folder / "chaos.yaml"
    data = drawn_scenes(folder, images=40, seed=0, shard_samples=16)
    config.write_text(
        random_run(
            data,
            f"""
optim: {{lr: 1.0e-3, text_scale: 1.0, backbone_scale: 1.0, drop_epochs: [1.5]}}
train: {{epochs: 2, calibration_images: 16}}
eval: {{batch: 16}}
engine: {{timeout_seconds: {TIMEOUT}}}
telemetry: {{prometheus_port: null, tensorboard: false}}
run: {{dir: {folder / "unused"}, checkpoint_steps: 4}}
""",
        )
    )
    wholes = {}
    for ranks in (1, 2):
        draw = Draw(0, config, folder / f"whole-{ranks}", ranks)
        with draw.start() as run:
            assert run.wait(240) == 0, run.said()[-3000:]
        wholes[ranks] = draw.folder
    return config, wholes


def check_draws(seeds: range, prepared: tuple[Path, dict[int, Path]], folder: Path) -> None:
    """Run the draws side by side; fail with what went wrong in each."""
    config, wholes = prepared

    def run(seed: int) -> str | None:
        ranks = 2 if seed // len(FAULTS) % 3 == 1 else 1
        draw = Draw(seed, config, folder / f"draw-{seed}", ranks)
        name = sorted(FAULTS)[seed % len(FAULTS)]
        began = time.monotonic()
        try:
            disturbed(draw, wholes[ranks])
        except Exception as error:  # of a thread: told with all others
            return f"draw {seed}, {name}, {ranks} rank(s): {error!r}".replace("\\n", "\n")
        finally:
            print(f"draw {seed:3} {name:24} {ranks} {time.monotonic() - began:5.1f} s", flush=True)
        shutil.rmtree(draw.folder)
        return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        failures = [failure for failure in pool.map(run, seeds) if failure is not None]
    assert not failures, "\n\n".join(failures)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a shared machine takes thrice as long
def test_draws_leave_no_trace(prepared: tuple[Path, dict[int, Path]], tmp_path: Path) -> None:
    check_draws(range(FIRST, FIRST + DRAWS), prepared, tmp_path)


@pytest.mark.soak
def test_four_hundred_draws_leave_no_trace(
    prepared: tuple[Path, dict[int, Path]], tmp_path: Path
) -> None:
    check_draws(range(FIRST, FIRST + 400), prepared, tmp_path)
