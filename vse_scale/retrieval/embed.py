"""Embeddings on disk: computed in parts that a kill cannot damage, joined at the end.

A folder holds ``index.json`` (the model and the source), and for each side, "images" and
"captions", ``SIDE.npy`` (n, D) float32 and ``SIDE.jsonl``, a line per row; items without an
embedding are in ``SIDE.set-aside.jsonl``. Parts are written aside, renamed, and cut at multiples of
a batch, so that a part is the same bytes on any process: a later start computes the missing ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from vse_scale.errors import DatasetError, OutputError
from vse_scale.files import whole_file, write_json, write_text
from vse_scale.retrieval.encode import Progress
from vse_scale.retrieval.saved import read_lines
from vse_scale.retrieval.similarities import open_array
from vse_scale.retrieval.sources import Part, Side
from vse_scale.world.processes import Processes
from vse_shards.json_text import mapping, read_json

INDEX = "index.json"
_PARTS = ".parts"
_BATCHES_PER_PART = 16

# Computes the parts of these numbers of a side, and calls the last with the items that are done.
Elsewhere: TypeAlias = Callable[[str, list[int], Callable[[int], None]], None]


def embed(
    sides: Mapping[str, Side],
    out: Path,
    described: Mapping[str, Any],
    *,
    batch: int,
    processes: Processes,
    progress: Progress,
    elsewhere: Elsewhere | None = None,
) -> dict[str, dict[str, int]]:
    """Embed ``sides`` into ``out``, continuing an earlier start.

    Args:
        sides: images or texts to embed, by name.
        out: the folder.
        described: model and source, for ``index.json``.
        batch: items encoded at once; parts hold a multiple of it.
        processes: the processes that share the work.
        progress: called with a side's name, how many of this process's items are done, and their
            number.
        elsewhere: computes the parts in the place of this process, by `embed_parts`.

    Returns:
        For each side the numbers of items "embedded" and "set_aside".

    Raises:
        OutputError: ``out`` holds other embeddings or other files, or cannot be written.
        DatasetError: no item of a side could be embedded.
    """
    asked = _asked(sides, described, batch)
    try:
        _start(out, asked, processes)
        missing = {name: _missing(name, side, out, batch) for name, side in sides.items()}
        processes.barrier()  # every process must list the missing parts before one writes
        for name, side in sides.items():
            mine = missing[name][processes.rank :: processes.ranks]
            _embed_side(name, side, out / _PARTS, batch, mine, progress, elsewhere)
        processes.barrier()
        if processes.main:
            for name, side in sides.items():
                if not (out / f"{name}.npy").exists():
                    _assemble(name, _part_names(name, len(side), batch), out)
            shutil.rmtree(out / _PARTS, ignore_errors=True)
        processes.barrier()
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written ({error.strerror})") from error
    return {
        name: {
            "embedded": len(open_array(out / f"{name}.npy")),
            "set_aside": len(read_lines(out / f"{name}.set-aside.jsonl")),
        }
        for name in sides
    }


def embed_parts(
    sides: Mapping[str, Side],
    out: Path,
    described: Mapping[str, Any],
    *,
    batch: int,
    name: str,
    numbers: list[int],
) -> int:
    """Compute some parts of a side for an `embed` that goes on elsewhere; return their items.

    Args:
        sides: all of them, as there.
        out: the folder, which this process sees, too.
        described: as there.
        batch: as there.
        name: of the side.
        numbers: of the parts.

    Raises:
        OutputError: ``out`` is not there, or holds other embeddings, or cannot be written.
    """
    _check_begun(out, _asked(sides, described, batch))
    side = sides[name]
    try:
        for number in numbers:
            _embed_part(name, side, out / _PARTS, batch, number)
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written ({error.strerror})") from error
    return _items(side, batch, numbers)


def _asked(sides: Mapping[str, Side], described: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """Return what ``index.json`` holds."""
    return {
        "format": "vse-scale-embeddings", "version": 1, **described, "batch": batch,
        "sides": {name: {"items": len(side), "fingerprint": side.fingerprint()}
                  for name, side in sides.items()},
    }  # fmt: skip


def _start(out: Path, asked: dict[str, Any], processes: Processes) -> None:
    """Make the folder, or check that its contents are of the same model and source."""
    index = out / INDEX
    if processes.main:
        if out.exists() and not index.is_file() and any(out.iterdir()):
            raise OutputError(f"--out {out}: holds something else; name a new folder")
        (out / _PARTS).mkdir(parents=True, exist_ok=True)
        if not index.is_file():
            write_json(index, asked)
    processes.barrier()
    _check_begun(out, asked)


def _check_begun(out: Path, asked: Mapping[str, Any]) -> None:
    try:
        found = mapping(read_json(out / INDEX))
    except OSError as error:
        raise OutputError(
            f"--out {out}: {INDEX} cannot be read ({error.strerror}); name a folder that all "
            "machines see"
        ) from None
    except ValueError as error:
        raise OutputError(f"--out {out}: {INDEX} is damaged ({error}); name a new folder") from None
    if found != asked:
        keys = sorted(found.keys() | asked.keys())
        differing = [key for key in keys if found.get(key) != asked.get(key)]
        raise OutputError(
            f"--out {out}: was begun with another {' and '.join(differing)}; go on with the same, "
            "or name a new folder"
        )


def _missing(name: str, side: Side, out: Path, batch: int) -> list[int]:
    """Return the numbers of the parts that are still to be computed."""
    if (out / f"{name}.npy").exists():
        return []
    names = _part_names(name, len(side), batch)
    return [n for n, part in enumerate(names) if not (out / _PARTS / f"{part}.jsonl").exists()]


def _embed_side(
    name: str,
    side: Side,
    parts: Path,
    batch: int,
    mine: list[int],
    progress: Progress,
    elsewhere: Elsewhere | None,
) -> None:
    total = _items(side, batch, mine)
    progress(name, 0, total)
    if elsewhere is not None:
        elsewhere(name, mine, lambda done: progress(name, done, total))
        return
    done = 0
    for number in mine:
        _embed_part(name, side, parts, batch, number)
        done += _items(side, batch, [number])
        progress(name, done, total)


def _embed_part(name: str, side: Side, parts: Path, batch: int, number: int) -> None:
    size = batch * _BATCHES_PER_PART
    part = side.embed(number * size, min((number + 1) * size, len(side)))
    _write_part(part, parts / _part_name(name, number))


def _items(side: Side, batch: int, numbers: list[int]) -> int:
    """Return the items of the parts of these numbers."""
    size = batch * _BATCHES_PER_PART
    return sum(min(size, len(side) - number * size) for number in numbers)


def _part_name(name: str, number: int) -> str:
    return f"{name}-{number:06d}"


def _part_names(name: str, items: int, batch: int) -> list[str]:
    parts = -(-items // (batch * _BATCHES_PER_PART))
    return [_part_name(name, number) for number in range(parts)]


def _write_part(part: Part, path: Path) -> None:
    """Write a part; its ``.jsonl`` comes last and marks it complete."""
    with whole_file(path.with_suffix(".npy"), shared=True) as partial, partial.open("wb") as file:
        np.save(file, np.ascontiguousarray(part.embeddings, dtype=np.float32))
    write_text(path.with_suffix(".set-aside.jsonl"), _lines(part.set_aside), shared=True)
    write_text(path.with_suffix(".jsonl"), _lines(part.lines), shared=True)


def _assemble(name: str, parts: list[str], out: Path) -> None:
    """Join a side's parts, one open at a time; its ``.npy`` comes last."""
    folder = out / _PARTS
    for suffix in (".set-aside.jsonl", ".jsonl"):
        with whole_file(out / f"{name}{suffix}") as partial, partial.open("wb") as lines:
            for part in parts:
                with (folder / f"{part}{suffix}").open("rb") as some:
                    shutil.copyfileobj(some, lines)
    shapes = [open_array(folder / f"{part}.npy").shape for part in parts]
    rows = sum(shape[0] for shape in shapes)
    if not rows:
        reason = read_lines(out / f"{name}.set-aside.jsonl")[0]
        raise DatasetError(
            f"none of the {name} could be embedded, the first is {reason['id']}: {reason['reason']}"
        )
    with whole_file(out / f"{name}.npy") as partial:
        whole = np.lib.format.open_memmap(partial, "w+", np.float32, (rows, shapes[0][1]))
        row = 0
        for part in parts:
            array = open_array(folder / f"{part}.npy")
            whole[row : row + len(array)] = array
            row += len(array)
        whole.flush()
        del whole  # unmap it before it gets its name


def _lines(objects: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects)
