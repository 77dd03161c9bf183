"""Damaged files read by real processes: of a user, in a folder, and with limits that show all.

The user may read every file of the machine, and write his own alone. Beside the folder of a draw
lies another of his, with pictures, texts and a dataset; files of the draw name it. Nothing in it
may be read or changed: the times of its files tell.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpus import TARGETS, make_corpus
from mutations import mutate, places
from processes import NOBODY
from sandbox import SECONDS, judge
from seals import reseal

SMALL = Path(__file__).parents[1] / "small.yaml"
NUMBERS = range(2)  # of each target: a damaged file, and one that names a file outside
TRUSTED = {"train", "embed"}  # a configuration may name any file, a folder of images has links
OUTSIDE = ("i.jpg", "rows.jsonl", "sims.npy", "")


class Processes:
    """Starts commands by ``processes.py``."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        paths = [here, here.parent / "support", here.parent / "interchange", SMALL.parents[1]]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        self._server = subprocess.Popen(
            [sys.executable, str(here / "processes.py")], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, job: dict[str, Any]) -> tuple[int, float]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        code, seconds = json.loads(self._server.stdout.readline())
        return code, seconds

    def close(self) -> None:
        self._server.communicate()


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    started = Processes()
    yield started
    started.close()


@pytest.fixture(scope="module")
def commons() -> Iterator[Path]:
    """A folder that every user reaches, with the corpus and the folder outside."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    (folder / "corpus").mkdir()
    make_corpus(folder / "corpus", SMALL)
    shutil.copytree(folder / "corpus" / "rows", folder / "outside")
    yield folder
    shutil.rmtree(folder)


def give(folder: Path) -> None:
    """Make a folder the sandboxed user's."""
    if os.getuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def seen(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the times and sizes of what is in a folder."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.stat()
        found[path.name] = (
            status.st_size, status.st_mode, status.st_mtime_ns, status.st_ctime_ns,
            status.st_atime_ns,
        )  # fmt: skip
    return found


def make_old(folder: Path) -> None:
    """Set times of reading before those of writing: then the next reading is noted."""
    for path in (*folder.rglob("*"), folder):
        os.utime(path, ns=(10**18, path.stat().st_mtime_ns))


def name_outside(path: Path, rng: random.Random, outside: Path) -> None:
    """Let a text in a file of JSON or CSV name a file outside, or the file itself be a link."""
    wanted = str(outside / rng.choice(OUTSIDE))
    wanted = rng.choice([wanted, os.path.relpath(wanted, path.parent), f"file://{wanted}"])
    lines = path.read_bytes().splitlines()
    if path.suffix in (".json", ".jsonl") and lines:
        at = rng.randrange(len(lines)) if path.suffix == ".jsonl" else None
        content = json.loads(path.read_bytes() if at is None else lines[at])
        texts = [place for place in places(content) if _at(content, place, str)]
        if texts:
            *parents, last = rng.choice(texts)
            holder = content
            for key in parents:
                holder = holder[key]
            holder[last] = wanted
        changed = json.dumps(content).encode()
        lines = [*lines[:at], changed, *lines[at + 1 :]] if at is not None else [changed]
        path.write_bytes(b"\n".join(lines) + b"\n")
    elif path.suffix == ".csv":
        path.write_text(path.read_text().replace("i.jpg", wanted))
    elif path.name.startswith("i."):
        path.unlink()
        path.symlink_to(outside / "i.jpg")


def _at(content: Any, place: tuple[Any, ...], kind: type) -> bool:
    for key in place:
        content = content[key]
    return bool(place) and isinstance(content, kind)


def draw(name: str, number: int, commons: Path, processes: Processes) -> None:
    target, rng = TARGETS[name], random.Random(f"process:{name}:{number}")
    box, outside, said = commons / "box", commons / "outside", commons / "said"
    shutil.rmtree(box, ignore_errors=True)
    shutil.copytree(commons / "corpus", box)
    said.write_bytes(b"")
    files = sorted(path for pattern in target.files for path in box.glob(pattern))
    damaged = rng.choice([path for path in files if path.is_file()])
    if number % 2 and name not in TRUSTED:
        name_outside(damaged, rng, outside)
    else:
        mutate(damaged, rng)
    reseal(damaged)
    for folder in (box, outside):
        give(folder)
    make_old(outside)
    before, in_tmp = seen(outside), set(os.listdir("/tmp"))
    where = {one.name: one for one in box.iterdir()} | {"out": box / "out"}
    arguments = [word.format(**where) for word in target.arguments]
    job = {"target": name, "arguments": arguments, "box": str(box), "said": str(said)}
    code, seconds = processes.run(job)
    place = f"{name}:{number} {damaged.relative_to(box)}"
    words = said.read_text("utf-8")
    assert seconds <= SECONDS, place
    assert judge(code, words) == [], f"{place}\n{words[-3000:]}"
    assert seen(outside) == before, f"{place}: a file outside was read or changed\n{words[-3000:]}"
    ours = [one for one in set(os.listdir("/tmp")) - in_tmp if _owner(one) == NOBODY]
    assert os.getuid() or ours == [], f"{place}: {ours}"


def _owner(name: str) -> int:
    try:
        return os.stat(f"/tmp/{name}", follow_symlinks=False).st_uid
    except FileNotFoundError:
        return -1


@pytest.mark.slow
def test_a_reading_outside_would_show(commons, processes):
    """A dataset of pictures outside, named by the command, is read: and the times tell."""
    outside = commons / "outside"
    shutil.copytree(commons / "corpus", commons / "box", dirs_exist_ok=True)
    (commons / "said").write_bytes(b"")
    for folder in (commons / "box", outside):
        give(folder)
    make_old(outside)
    before = seen(outside)
    words = TARGETS["build jsonl"].arguments
    arguments = [word.format(rows=outside, out=commons / "box" / "out") for word in words]
    job = {"target": "build jsonl", "arguments": arguments, "box": str(commons / "box")}
    assert processes.run({**job, "said": str(commons / "said")})[0] == 0
    changed = {name for name, times in seen(outside).items() if times != before[name]}
    if not changed:
        pytest.skip("the file system notes no times of reading")
    assert {"rows.jsonl", "i.jpg"} <= changed


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_process_keeps_to_its_folder_and_its_limits(name, commons, processes):
    for number in NUMBERS:
        draw(name, number, commons, processes)
