"""Damage to files: of their bytes, and of the values in JSON and YAML, by a seed."""

from __future__ import annotations

import copy
import io
import json
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**4000, 1e308, float("nan"),
    float("inf"), 0.5, "", "x", "0", "-1", "\0", "\x1b]52;c;eA==\x07", "\u202e", "a\nb", "é" * 300,
    "x" * 100_000, "../../etc/passwd", "/dev/zero", "file:///etc/passwd", "::", "{}", "%s", [], {},
    [[]], [None], [{}], {"": None}, {"a": {"b": []}}, ["x"] * 3, [1] * 3, [[0, 1], [1, 0]],
)  # fmt: skip
BYTES = (
    b"\0",
    b"\xff",
    b"\0" * 8,
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"{",
    b"[" * 5000,
    b"\n",
    b"9" * 40,
)


def nested(rng: random.Random) -> Any:
    value: Any = 1
    for _ in range(rng.choice([30, 120, 200])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:50]):
            found += places(inner, (*path, number))
    return found


def change_value(content: Any, rng: random.Random) -> Any:
    """Replace, remove, rename or double one value at any place."""
    content = copy.deepcopy(content)
    path = rng.choice(places(content))
    odd = nested(rng) if rng.random() < 0.05 else copy.deepcopy(rng.choice(ODD))
    if not path:
        return odd
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    kind = rng.random()
    if kind < 0.7:
        holder[path[-1]] = odd
    elif kind < 0.85:
        del holder[path[-1]]
    elif isinstance(holder, dict):
        holder[str(odd)[:200]] = holder.pop(path[-1])
    else:
        holder.append(holder[path[-1]])
    return content


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, double, blank or exchange a few stretches."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        size = len(out)
        # Most of a format is in its first bytes.
        at = rng.randrange(min(size, rng.choice([16, 64, 512, 1 << 30])) or 1) if size else 0
        length = rng.choice([1, 2, 4, 8, 64, 512])
        kind = rng.randrange(7)
        if kind == 0 and size:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            out[at:at] = rng.choice(BYTES)
        elif kind == 3:
            out[at : at + length] = rng.choice(BYTES)
        elif kind == 4:
            del out[at : at + length]
        elif kind == 5:
            out[at:at] = out[at : at + length]
        else:
            out[at : at + length] = rng.randbytes(length)
    return bytes(out)


def change_text(path: Path, rng: random.Random) -> None:
    """Change a value of a file of JSON, JSON lines or YAML."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        path.write_text(json.dumps(change_value(json.loads(text), rng)))
    elif path.suffix == ".jsonl":
        lines = [json.loads(line) for line in text.splitlines()] or [{}]
        at = rng.randrange(len(lines))
        lines[at] = change_value(lines[at], rng)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        path.write_text(yaml.safe_dump(change_value(yaml.safe_load(text), rng)))


def change_npy(path: Path, rng: random.Random) -> None:
    array = np.load(path)
    kinds = (">f4", "f2", "f8", "i8", "U3", "?", "c8", "M8[s]")
    shapes = ((), (0,), (0, 4), (1,), (len(array), 0), (array.size,), (1, 1, array.size))
    if rng.random() < 0.5:
        with np.errstate(all="ignore"):
            array = array.astype("i8").astype(rng.choice(kinds)) if array.size else array
    elif rng.random() < 0.5:
        shape = rng.choice(shapes)
        array = np.resize(array, shape)
    else:
        array = array.astype("f4")
        array.ravel()[: rng.randrange(array.size + 1)] = rng.choice([np.nan, np.inf, 3e38])
    np.save(path, array)


def change_tar(path: Path, rng: random.Random) -> None:
    """Change the bytes of a header, or of a member whose header is right again."""
    if rng.random() < 0.5:
        path.write_bytes(change_bytes(path.read_bytes(), rng))
        return
    out = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=out, mode="w") as new:
        members = [(one.name, old.extractfile(one).read()) for one in old if one.isfile()]
        at = rng.randrange(len(members))
        for number, (name, data) in enumerate(members):
            if number == at:
                if name.endswith(".json") and rng.random() < 0.7:
                    data = json.dumps(change_value(json.loads(data), rng)).encode()
                elif rng.random() < 0.7:
                    data = change_bytes(data, rng)
                else:
                    name = rng.choice(["../x", "/etc/x", "", "a" * 300, "\x1b[2J", name, "é.jpg"])
            entry = tarfile.TarInfo(name or "x")
            entry.size = len(data)
            new.addfile(entry, io.BytesIO(data))
    path.write_bytes(out.getvalue())


def change_zip(path: Path, rng: random.Random) -> None:
    """Change a member of an archive, such as the pickle in what ``torch.save`` wrote."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            data = old.read(name)
            new.writestr(name, change_bytes(data, rng) if name == chosen else data)
    path.write_bytes(out.getvalue())


def mutate(path: Path, rng: random.Random) -> None:
    """Damage one file, by its kind half of the time, else byte by byte."""
    own = {
        ".json": change_text, ".jsonl": change_text, ".yaml": change_text, ".npy": change_npy,
        ".tar": change_tar, ".pth": change_zip,
    }.get(path.suffix)  # fmt: skip
    if own is not None and rng.random() < 0.6:
        own(path, rng)
    else:
        path.write_bytes(change_bytes(path.read_bytes(), rng))
