"""What the machine code of the kernels may use: the one table, checked by test_compiled.py.

Registers decide how many warps fit on a multiprocessor, which has 65,536 of them; shared memory
per block is at most 163 KiB on sm_80 and 227 KiB from sm_90 on. A limit is the figure that was
compiled with triton 3.7.1, rounded up to the step at which occupancy changes.
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
    """

    patterns: tuple[str, ...]
    capabilities: tuple[int, ...] = (80, 90, 100)
    registers: int = 255
    shared_bytes: int = 0
    tensor_core: str | None = None
    wide_addresses: int = 3


# The first that matches holds. Spills are zero everywhere, without exception.
LIMITS = (
    Limit(("gpo-forward-4-*", "gpo-forward-8-*"), registers=40),
    Limit(("gpo-forward-16-*", "gpo-forward-24-*", "gpo-forward-32-*"), registers=64),
    Limit(("gpo-forward-36-*",), registers=72),
    Limit(("gpo-forward-48-*",), registers=104),
    Limit(("gpo-forward-64-*",), registers=168),
    Limit(("gpo-backward-4-*", "gpo-backward-8-*"), registers=56),
    Limit(("gpo-backward-16-*",), registers=80),
    Limit(("gpo-backward-24-*", "gpo-backward-32-*"), registers=128),
    Limit(("gpo-backward-36-*",), registers=136),
    Limit(("gpo-backward-48-*",), registers=184),
    Limit(("gpo-backward-64-*",), registers=255),
    Limit(("gpo-*-100-*", "gpo-*-256-*"), registers=168, shared_bytes=32768),
    Limit(("gpo-reduce",), registers=48, shared_bytes=1024, wide_addresses=1),
    Limit(("hardest-*-fp32",), registers=168, shared_bytes=32768),
    # Two programs per multiprocessor on sm_90: one multiplies while the other takes its maxima.
    Limit(("hardest-*",), (90,), registers=128, shared_bytes=98304, tensor_core="HGMMA"),
    Limit(("hardest-*",), (80,), registers=168, shared_bytes=65536, tensor_core="HMMA"),
    Limit(("hardest-*",), (100,), registers=224, shared_bytes=98320, tensor_core="UTCHMMA"),
)


def limit_of(name: str, capability: int) -> Limit:
    """The bounds of one configuration."""
    for limit in LIMITS:
        if capability in limit.capabilities and any(fnmatch(name, p) for p in limit.patterns):
            return limit
    raise LookupError(f"no limit covers {name} on sm_{capability}")
