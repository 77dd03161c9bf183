"""Instructions in the output of `nvdisasm -c`: all, and those that a tile of mining runs."""

from __future__ import annotations

import re
from collections import Counter

INSTRUCTION = re.compile(r"^\s*(?:/\*[0-9a-f]+\*/)?\s*(@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)[ .;](.*)")
# Shorter blocks are skipped by one thread of a warp, not by a whole tile.
SHORTEST_BRANCH = 64


def read(code: str) -> tuple[list[tuple[bool, str, str]], dict[str, int]]:
    """Return (under a predicate, operation, operands) of each instruction, and where labels are."""
    found: list[tuple[bool, str, str]] = []
    labels = {}
    for line in code.splitlines():
        label = re.match(r"(\.L_\w+):", line)
        if label:
            labels[label[1]] = len(found)
        elif match := INSTRUCTION.match(line):
            found.append((bool(match[1]), match[2], match[3]))
    return found, labels


def operations(code: str) -> Counter[str]:
    """Return how often each operation occurs."""
    return Counter(operation for _, operation, _ in read(code)[0])


def usual_path(code: str) -> tuple[Counter[str], Counter[str]]:
    """Return the operations of a usual tile outside of the loop that multiplies, and within it.

    Left out are long blocks that a branch skips, which here compare ids, unless they multiply.
    """
    found, labels = read(code)
    multiplies = [operation.endswith("MMA") for _, operation, _ in found]
    loops, skipped = set(), set()
    for here, (predicated, operation, operands) in enumerate(found):
        if operation != "BRA":
            continue
        there = labels[re.search(r"\.L_\w+", operands)[0]]
        if there <= here and any(multiplies[there:here]):
            loops |= set(range(there, here + 1))
        elif predicated and there - here > SHORTEST_BRANCH and not any(multiplies[here:there]):
            skipped |= set(range(here + 1, there))
    once, step = Counter(), Counter()
    for here, (_, operation, _) in enumerate(found):
        if here in loops:
            step[operation] += 1
        elif here not in skipped:
            once[operation] += 1
    return once, step
