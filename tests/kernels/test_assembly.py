"""The networks' PTX, executed line by line on 32 lanes: the interpreter has no inline assembly.

That the assembler accepts it is for test_compiled.py, that a device sorts for tests/gpu.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from vse_kernels.gpo.keys import key_assembly
from vse_kernels.gpo.lanes import sorting_assembly

SIZES = [(1, 1), (2, 1), (7, 1), (36, 1), (2, 2), (64, 2), (64, 4), (32, 8), (8, 16)]


@pytest.mark.parametrize(("size", "lanes"), SIZES)
def test_values_are_sorted(size, lanes):
    """Many of them equal, in all columns of a warp at once."""
    generator = torch.Generator().manual_seed(size)
    values = torch.randint(0, size * lanes, (size, 32), generator=generator)
    expect_sorted(values, lanes, sorting_assembly(size, lanes, ".NaN.bf16x2"))


@pytest.mark.parametrize(("size", "lanes"), SIZES)
def test_keys_of_64_bits_are_sorted(size, lanes):
    """Distinct, as keys are: upper halves of either sign, many equal, above halves that differ."""
    generator = torch.Generator().manual_seed(size)
    upper = torch.randint(-size * lanes // 4 - 1, size * lanes // 4 + 1, (size, 32))
    upper[torch.rand(size, 32, generator=generator) < 0.1] = -(1 << 31)
    lower = torch.rand(size, 32, generator=generator).argsort(0) * 32 + torch.arange(32)
    expect_sorted((upper << 32) | lower, lanes, key_assembly(size, lanes))


def expect_sorted(values, lanes, assembly):
    """Positions (size, 32) of each lane, of which `lanes` share a column."""
    size = len(values)
    registers = {f"${size + i}": values[i].tolist() for i in range(size)}
    for line in assembly.splitlines()[1:-1]:
        if not line.startswith(".reg"):
            execute(line.rstrip(";").replace(",", "").split(), registers)
    sorted_ = torch.tensor([registers[f"${i}"] for i in range(size)])
    apart = 32 // lanes
    for column in range(apart):
        own = slice(column, None, apart)
        expected = values[:, own].flatten().sort(descending=True).values
        assert torch.equal(sorted_[:, own].T.flatten(), expected)


def execute(words, registers):
    """Run one instruction of PTX on the 32 lanes of each register; the rest is undefined."""
    runs = [True] * 32
    if words[0].startswith("@"):
        predicate = registers[words[0].lstrip("@!")]
        runs = [value != words[0].startswith("@!") for value in predicate]
        words = words[1:]
    name, *operands = words
    if name == "mov.b64":
        move_halves(" ".join(operands), registers)
        return
    target, *sources = operands
    read = [value_of(source, registers) for source in sources]
    found = result(name, read, sources)
    before = registers.get(target, [None] * 32)
    registers[target] = [
        new if run else old for new, old, run in zip(found, before, runs, strict=True)
    ]


def value_of(source, registers):
    """The 32 lanes of an operand: a register, a negated predicate, a constant or a special one."""
    if source.startswith("!"):
        return [not value for value in registers[source[1:]]]
    constants = {"%laneid": list(range(32)), "%nctaid.y": [1] * 32}
    return registers.get(source) or constants.get(source) or [source] * 32


def result(name, read, sources):
    kind = name.split(".")[0]
    lanes = list(zip(*read, strict=True))
    if kind == "mov":
        return read[0]
    if kind in ("min", "max"):
        return [{"min": min, "max": max}[kind](pair) for pair in lanes]
    if kind == "and":
        return [value & int(mask) for value, mask in lanes]
    if kind == "neg":
        return [-value for (value,) in lanes]
    if name == "mad.lo.s32":
        return [wrapped(a * b + c, 32) for a, b, c in lanes]
    if name == "selp.b32":
        return [a if chosen else b for a, b, chosen in lanes]
    if name == "setp.eq.u32":
        return [value == int(other) for value, other in lanes]
    if name == "setp.lt.s64":
        return [a < b for a, b in lanes]
    if name == "setp.lt.xor.s64":
        return [(a < b) != c for a, b, c in lanes]
    assert (name, sources[2:]) == ("shfl.sync.bfly.b32", ["31", "0xffffffff"])
    return [read[0][lane ^ int(sources[1])] for lane in range(32)]


def move_halves(operands, registers):
    """Join the halves {low high} to 64 bits, or split these; halves are signed here."""
    if operands.startswith("{"):
        halves, source = operands.lstrip("{").split("} ")
        low, high = halves.split()
        registers[low] = [wrapped(value, 32) for value in registers[source]]
        registers[high] = [value >> 32 for value in registers[source]]
    else:
        target, halves = operands.rstrip("}").split(" {")
        low, high = (registers[half] for half in halves.split())
        registers[target] = [b << 32 | a & 0xFFFFFFFF for a, b in zip(low, high, strict=True)]


def wrapped(value, bits):
    """A number in two's complement."""
    half = 1 << (bits - 1)
    return (value + half) % (2 * half) - half
