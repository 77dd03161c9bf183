"""What the machine code of the kernels may use: the one table, checked by test_compiled.py.

Registers decide how many warps fit on a multiprocessor, which has 65,536 of them; shared memory
per block is at most 163 KiB on sm_80 and 227 KiB from sm_90 on. Registers may be the largest
figure of compiled.csv, rounded up to a step of 8, at which occupancy may change, and at most the
255 that a thread can have; shared memory may be the largest figure. Instructions have some room.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch


@dataclass(frozen=True)
class Limit:
    """Bounds for the configurations whose names match one of `patterns`.

    Attributes:
        patterns: of names such as "gpo-forward-36-bf16".
        capabilities: compute capabilities it holds for.
        registers: per thread, at most.
        shared_bytes: per program, at most.
        tensor_core: the instruction that has to multiply, or None.
        wide_addresses: address computations with a 64-bit offset, at least.
        packed_minima: instructions that order two pairs of 16-bit floats, at least.
        instructions: in all, at most; one takes 16 bytes.
        alu_per_column: instructions of the integer pipe per column and lane, at most.
        alu_per_score: those of passes over scores outside of their loop, per score, at most.
    """

    patterns: tuple[str, ...]
    capabilities: tuple[int, ...] = (80, 90, 100)
    registers: int = 255
    shared_bytes: int = 0
    tensor_core: str | None = None
    wide_addresses: int = 3
    packed_minima: int = 0
    instructions: int = 12000
    alu_per_column: int = 10000
    alu_per_score: float = 30


# The first that matches holds. Spills are zero everywhere, without exception.
LIMITS = (
    Limit(
        ("gpo-forward-4-*", "gpo-forward-8-*"),
        registers=32,
        instructions=256,
    ),
    Limit(
        tuple(f"gpo-forward-{size}-*" for size in (16, 24, 32)),
        registers=56,
        instructions=1216,
    ),
    # One network alone, all of whose instructions count.
    Limit(
        ("gpo-forward-36-alone-*",),
        registers=96,
        instructions=1152,
        alu_per_column=704,
    ),
    Limit(
        ("gpo-forward-64-alone-*",),
        registers=96,
        instructions=2048,
        alu_per_column=1472,
    ),
    Limit(
        tuple(f"gpo-forward-{size}-*" for size in (36, 48, 56, 64)),
        registers=96,
        instructions=2560,
    ),
    Limit(
        ("gpo-forward-100-*",),
        registers=248,
        instructions=3840,
        alu_per_column=3008,
    ),
    # Several lanes share a column.
    Limit(
        ("gpo-forward-128-*",),
        registers=96,
        instructions=2816,
        alu_per_column=4352,
    ),
    Limit(
        ("gpo-forward-256-*",),
        registers=96,
        instructions=3968,
        alu_per_column=12736,
    ),
    Limit(
        ("gpo-forward-512-*",),
        registers=96,
        instructions=5248,
        alu_per_column=34496,
    ),
    # The sums over columns change their layout before they are stored.
    Limit(
        ("gpo-backward-4-*", "gpo-backward-8-*"),
        registers=56,
        shared_bytes=32,
        instructions=768,
    ),
    Limit(
        ("gpo-backward-16-*", "gpo-backward-24-*"),
        registers=96,
        shared_bytes=64,
        instructions=3968,
    ),
    Limit(
        ("gpo-backward-36-alone-*",),
        registers=128,
        shared_bytes=128,
        instructions=4224,
        alu_per_column=2304,
    ),
    Limit(
        tuple(f"gpo-backward-{size}-*" for size in (32, 36, 48, 56)),
        registers=248,
        shared_bytes=128,
        instructions=9856,
    ),
    Limit(
        ("gpo-backward-64-*",),
        registers=152,
        shared_bytes=256,
        instructions=4864,
        alu_per_column=5504,
    ),
    Limit(
        ("gpo-backward-128-*",),
        registers=152,
        shared_bytes=512,
        instructions=6016,
        alu_per_column=14144,
    ),
    Limit(
        ("gpo-backward-256-*",),
        registers=152,
        shared_bytes=1024,
        instructions=7936,
        alu_per_column=38144,
    ),
    Limit(
        ("gpo-backward-512-*",),
        registers=152,
        shared_bytes=2048,
        instructions=9728,
        alu_per_column=95808,
    ),
    # Odd widths: two loads and stores a pair.
    Limit(
        ("gpo-packed-forward-36-*-odd-*", "gpo-packed-forward-64-*-odd-*"),
        registers=128,
        packed_minima=482,
        instructions=2432,
        alu_per_column=800,
    ),
    Limit(
        ("gpo-packed-forward-256-odd-*",),
        registers=136,
        packed_minima=2238,
        instructions=4224,
        alu_per_column=5504,
    ),
    Limit(
        ("gpo-packed-backward-*-odd-*",),
        registers=144,
        shared_bytes=1024,
        packed_minima=518,
        instructions=7680,
        alu_per_column=21248,
    ),
    # Two columns per register, two networks; "alone" with the largest, whose instructions count.
    Limit(
        ("gpo-packed-forward-36-alone-*",),
        registers=56,
        packed_minima=482,
        instructions=1200,
        alu_per_column=400,
    ),
    Limit(
        ("gpo-packed-forward-64-alone-*",),
        registers=96,
        packed_minima=1086,
        instructions=2200,
        alu_per_column=900,
    ),
    Limit(
        ("gpo-packed-backward-36-alone-*",),
        registers=128,
        shared_bytes=128,
        packed_minima=482,
        instructions=4096,
        alu_per_column=1440,
    ),
    Limit(
        ("gpo-packed-forward-100-*",),
        registers=152,
        packed_minima=2154,
        instructions=4096,
        alu_per_column=1536,
    ),
    # Several lanes share a column.
    Limit(
        ("gpo-packed-forward-128-*",),
        registers=96,
        packed_minima=1598,
        instructions=3200,
        alu_per_column=2304,
    ),
    Limit(
        ("gpo-packed-forward-256-*",),
        registers=96,
        packed_minima=2238,
        instructions=4096,
        alu_per_column=6144,
    ),
    Limit(
        ("gpo-packed-forward-512-*",),
        registers=96,
        packed_minima=3006,
        instructions=5504,
        alu_per_column=16000,
    ),
    Limit(
        ("gpo-packed-backward-64-*",),
        registers=144,
        shared_bytes=256,
        packed_minima=638,
        instructions=4352,
        alu_per_column=3136,
    ),
    Limit(
        ("gpo-packed-backward-128-*",),
        registers=144,
        shared_bytes=512,
        packed_minima=926,
        instructions=5632,
        alu_per_column=8192,
    ),
    Limit(
        ("gpo-packed-backward-256-*",),
        registers=144,
        shared_bytes=1024,
        packed_minima=1278,
        instructions=7424,
        alu_per_column=21000,
    ),
    Limit(
        tuple(f"gpo-packed-forward-{size}-*" for size in (4, 8, 16, 24)),
        registers=48,
        packed_minima=10,
        instructions=1024,
    ),
    Limit(
        tuple(f"gpo-packed-forward-{size}-*" for size in (32, 36, 48, 56, 64)),
        registers=96,
        packed_minima=508,
        instructions=3072,
    ),
    Limit(
        tuple(f"gpo-packed-backward-{size}-*" for size in (4, 8, 16, 24)),
        registers=88,
        shared_bytes=64,
        packed_minima=14,
        instructions=4096,
    ),
    Limit(
        ("gpo-packed-backward-*",),
        registers=216,
        shared_bytes=128,
        packed_minima=556,
        instructions=9216,
    ),
    Limit(("gpo-reduce",), registers=40, shared_bytes=1024, wide_addresses=1),
    # Run for the rare tile alone.
    Limit(("hardest-odd-*",), (80,), registers=184, shared_bytes=40960, tensor_core="HMMA"),
    Limit(("hardest-odd-*",), (90,), registers=152, shared_bytes=110592, tensor_core="HGMMA"),
    Limit(("hardest-odd-*",), (100,), registers=128, shared_bytes=61456, tensor_core="UTCHMMA"),
    Limit(
        ("hardest-*-fp32",),
        (90,),
        registers=208,
        shared_bytes=98304,
        tensor_core="HGMMA",
        alu_per_score=13,
    ),
    # 256 x 128 scores are 128 registers of each of 256 threads.
    Limit(
        ("hardest-*",),
        (90,),
        registers=240,
        shared_bytes=147456,
        tensor_core="HGMMA",
        alu_per_score=9,
    ),
    Limit(("hardest-*",), (80,), registers=176, shared_bytes=65536, tensor_core="HMMA"),
    Limit(("hardest-*",), (100,), registers=120, shared_bytes=73744, tensor_core="UTCHMMA"),
    Limit(
        ("violations-*",),
        (90,),
        registers=208,
        shared_bytes=73728,
        tensor_core="HGMMA",
        alu_per_score=47,
    ),
    Limit(
        ("violations-*",),
        (80,),
        registers=200,
        shared_bytes=49152,
        tensor_core="HMMA",
        alu_per_score=49,
    ),
    Limit(
        ("violations-*",),
        (100,),
        registers=208,
        shared_bytes=73744,
        tensor_core="UTCHMMA",
    ),
    Limit(
        ("contrast-*-fp32",),
        (90,),
        registers=216,
        shared_bytes=98304,
        tensor_core="HGMMA",
        wide_addresses=2,
        alu_per_score=13,
    ),
    # Two programs fit a multiprocessor.
    Limit(
        ("contrast-sigmoid-*",),
        (90,),
        registers=128,
        shared_bytes=98304,
        tensor_core="HGMMA",
        alu_per_score=12,
    ),
    Limit(
        ("contrast-*",),
        (90,),
        registers=255,
        shared_bytes=147456,
        tensor_core="HGMMA",
        wide_addresses=2,
        alu_per_score=7,
    ),
    Limit(
        ("contrast-*",),
        (80,),
        registers=255,
        shared_bytes=65536,
        tensor_core="HMMA",
        wide_addresses=2,
        alu_per_score=14,
    ),
    Limit(
        ("contrast-*",),
        (100,),
        registers=128,
        shared_bytes=73744,
        tensor_core="UTCHMMA",
        wide_addresses=2,
        alu_per_score=14,
    ),
)


def limit_of(name: str, capability: int) -> Limit:
    """The bounds of one configuration."""
    for limit in LIMITS:
        if capability in limit.capabilities and any(fnmatch(name, p) for p in limit.patterns):
            return limit
    raise LookupError(f"no limit covers {name} on sm_{capability}")
