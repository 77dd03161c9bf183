"""The array that makes the parts of a planned dataset: against stand-ins, and on a real SLURM.

After rom1504/img2dataset#159 (executors that are shut down take shards with them, and all seems
well).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from slurm_cluster import slurm_cluster

from vse_shards.build import BuildOptions, build
from vse_shards.errors import OutputError
from vse_shards.machines import seal
from vse_shards.planning import make_plan
from vse_shards.sources.registry import SourceRequest, open_source

ROOT = Path(__file__).parents[2]
SCRIPT = "launch/slurm/build.sbatch"
SRUN = """#!/usr/bin/env bash
echo "$*" >>"$LOG/srun"
exit "$CODE"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$*" >>"$LOG/scontrol"
"""


def task(folder: Path, *arguments: str, code: int = 0, **slurm: str) -> tuple[int, str, str, str]:
    """Run one task of an array; return its code, its words, srun's arguments and scontrol's."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).mkdir(parents=True)
        (folder / name / name).write_text(text)
        (folder / name / name).chmod(0o755)
    path = f"{folder}/srun:{folder}/scontrol:{os.environ['PATH']}"
    log = folder / "log"
    log.mkdir()
    environment = {f"SLURM_{name}": value for name, value in slurm.items()}
    ended = subprocess.run(
        ["bash", SCRIPT, *arguments],
        env={"PATH": path, "LOG": str(log), "CODE": str(code), "SLURM_JOB_ID": "9", **environment},
        capture_output=True, text=True, timeout=100, cwd=ROOT,
    )  # fmt: skip
    for name in ("srun", "scontrol"):
        (log / name).touch()
    said = (log / "srun").read_text(), (log / "scontrol").read_text()
    return ended.returncode, ended.stderr, *said


def array(number: int, last: int, count: int, first: int = 0) -> dict[str, str]:
    return {
        "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": str(number), "ARRAY_TASK_MIN": str(first),
        "ARRAY_TASK_MAX": str(last), "ARRAY_TASK_COUNT": str(count), "CPUS_PER_TASK": "3",
    }  # fmt: skip


def test_a_task_makes_its_part(tmp_path: Path) -> None:
    code, _, asked, _ = task(tmp_path, "data/mine", **array(3, 63, 64))
    assert (code, asked) == (0, "vse-shards make data/mine --shards 3/64 --workers 3\n")


def test_a_few_tasks_make_the_parts_of_the_whole_array(tmp_path: Path) -> None:
    code, _, asked, _ = task(tmp_path, "data/mine", "64", **array(17, 17, 2, first=3))
    assert (code, asked) == (0, "vse-shards make data/mine --shards 17/64 --workers 3\n")


@pytest.mark.parametrize(
    ("slurm", "said"),
    [
        ({}, "no array: give sbatch --array=0-63, a task for each part"),
        (array(17, 17, 2, first=3), "give the number of all parts after the folder, such as 64"),
        (array(1, 64, 64, first=1), "the array is not 0 to N-1"),
        (array(4, 8, 3), "the array is not 0 to N-1"),
    ],
)
def test_parts_that_are_not_known_are_refused(
    slurm: dict[str, str], said: str, tmp_path: Path
) -> None:
    code, words, asked, _ = task(tmp_path, "data/mine", **slurm)
    assert (code, asked) == (2, "")
    assert said in words
    assert words.count("\n") == 1


@pytest.mark.parametrize(("starts", "code", "requeued"), [("0", 0, "requeue 7_3\n"), ("3", 75, "")])
def test_a_node_without_the_pictures_leaves_the_part_to_another(
    starts: str, code: int, requeued: str, tmp_path: Path
) -> None:
    slurm = array(3, 63, 64) | {"RESTART_COUNT": starts}
    found = task(tmp_path, "data/mine", code=75, **slurm)
    assert (found[0], found[3]) == (code, requeued)


def test_a_mistake_is_not_tried_again(tmp_path: Path) -> None:
    found = task(tmp_path, "data/mine", code=2, **array(3, 63, 64))
    assert (found[0], found[3]) == (2, "")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.slow
def test_an_array_of_which_a_task_is_killed_gives_the_files_of_one_machine(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    lines = []
    for number in range(240):
        colour = (number, 255 - number, number // 2)
        Image.new("RGB", (600, 400), colour).save(images / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "captions": [f"picture {number}"]}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    request, options = SourceRequest(str(tmp_path / "rows.jsonl")), BuildOptions(shard_samples=4)
    build(open_source("jsonl", request), str(tmp_path / "one"), options)
    out = tmp_path / "many"
    make_plan(open_source("jsonl", request), str(out), options)
    with slurm_cluster(tmp_path / "slurm") as cluster:

        def submit(tasks: str, *more: str) -> str:
            log = f"--output={tmp_path}/%a.log"
            asked = cluster.run(
                "sbatch", "--parsable", f"--array={tasks}", "--cpus-per-task=1", "--wait", log,
                SCRIPT, str(out), *more, cwd=ROOT, timeout=400,
            )  # fmt: skip
            return asked.stdout + asked.stderr

        killed = []

        def makers() -> list[psutil.Process]:
            """The processes that make part 2, or will once they are started."""
            found = []
            for process in psutil.process_iter(["cmdline"]):
                words = process.info["cmdline"] or []
                if str(out) in words and "2/4" in words and "make" in words and "srun" not in words:
                    found.append(process)
            return found

        def watch() -> None:
            """Kill the makers of part 2 once they have made a shard."""
            deadline, known = time.monotonic() + 300, list[psutil.Process]()
            while not killed and time.monotonic() < deadline:
                # Found before the first shard: a search may last as long as the whole part.
                known = known or makers()
                if known and any(out.glob("*-00003[0-9].tar")):
                    for process in known:
                        process.send_signal(signal.SIGKILL)
                        killed.append(process.pid)
                time.sleep(0.005)

        watching = threading.Thread(target=watch)
        watching.start()
        submit("0-3")
        watching.join()
        assert killed
        with pytest.raises(OutputError, match=r"are not made.* --shards 2/4, then") as refusal:
            seal(str(out))
        assert "and so on" not in str(refusal.value)
        submit("2", "4")
    seal(str(out))
    assert digests(out) == digests(tmp_path / "one")
