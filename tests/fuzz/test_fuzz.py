"""Damaged files of every kind through every command that reads them: exit 0, 2 or 75, one line.

Each draw has a number, which is its seed: ``VSE_FUZZ_DRAW=info:17`` runs that one alone.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest
from corpus import TARGETS, make_corpus
from mutations import mutate
from sandbox import Fault, run
from seals import reseal

DRAWS = int(os.environ.get("VSE_FUZZ_DRAWS", "12"))  # of each target
SMALL = Path(__file__).parents[1] / "small.yaml"
ONE = os.environ.get("VSE_FUZZ_DRAW", "")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, SMALL)
    (folder / "canary").mkdir()
    (folder / "canary" / "kept").write_text("as it was")
    return folder


def draw(name: str, number: int, corpus: Path, work: Path) -> None:
    """Damage a copy of the files of a target by the seed ``number``, and run its command.

    Every second draw has its digests renewed, as by one who wants the damage to be read.
    """
    target, rng = TARGETS[name], random.Random(f"{name}:{number}")
    box = work / "box"
    shutil.copytree(corpus, box, ignore=shutil.ignore_patterns("canary"))
    patterns = sorted(target.files)
    files = sorted(box.glob(rng.choice(patterns)))
    damaged = rng.choice([one for one in files if one.is_file()])
    if number:  # the first draw is whole
        mutate(damaged, rng)
    if number % 2:
        reseal(damaged)
    places = {one.name: one for one in box.iterdir()} | {"out": box / "out"}
    arguments = [word.format(**places) for word in target.arguments]
    before = os.environ.get("TMPDIR")
    try:
        code, said = run(target.main, ["x", *arguments], box)
        if not number and code:
            raise Fault("refuses what is whole", said)
    except Fault as fault:
        fault.detail = f"{name}:{number} ({damaged.relative_to(box)}) {fault.detail}"
        raise
    finally:
        assert os.environ.get("TMPDIR") == before
        shutil.rmtree(box)


def draws(name: str, numbers, corpus: Path, work: Path) -> dict[str, str]:
    faults: dict[str, str] = {}
    for number in numbers:
        try:
            draw(name, number, corpus, work)
        except Fault as fault:
            faults.setdefault(fault.what, fault.detail)
    kept = corpus / "canary" / "kept"
    assert [one.name for one in kept.parent.iterdir()] == ["kept"]
    assert kept.read_text() == "as it was"
    return faults


def report(faults: dict[str, str]) -> str:
    return "\n\n".join(f"== {what}\n{detail}" for what, detail in faults.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_one_line(name, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    numbers = range(DRAWS)
    if ONE:
        chosen, _, number = ONE.partition(":")
        numbers = [int(number)] if chosen == name else []
    assert not (faults := draws(name, numbers, corpus, tmp_path)), report(faults)


@pytest.mark.soak
def test_damaged_files_for_an_hour(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    started, number, faults = time.monotonic(), 10_000, {}
    while time.monotonic() - started < float(os.environ.get("VSE_FUZZ_SECONDS", "3600")):
        for name in TARGETS:
            faults |= draws(name, [number], corpus, tmp_path)
        number += 1
    assert not faults, report(faults)
