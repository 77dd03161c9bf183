"""Compile every shipped kernel configuration ahead of time, without a GPU, and read the cubins.

A child process of the tests, because a process that interprets kernels cannot compile them:

    python tests/kernels/compiled.py CAPABILITY [PATTERN ...] > FILE.csv

writes one line per configuration for compute capability 80, 90 (sm_90a) or 100 (sm_100a). With
TRITON_ALWAYS_COMPILE=1 nothing comes from Triton's cache, and the seconds are those of compiling.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# Both before the first import of triton.
os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vse_kernels.cost import by_pipe
from vse_kernels.gpo import choice as pooling
from vse_kernels.gpo import packed
from vse_kernels.gpo import triton as gpo
from vse_kernels.hardest import choice as mining
from vse_kernels.hardest import triton as hardest
from vse_kernels.hardest.launch import LOWEST

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Sizes of pairs that are compiled in float16 too, and with one network, to count instructions.
COUNTED = (36, 64)
PACKED_FORWARD = (*pooling.PACKED_SIZES, *pooling.FORWARD_LANES)
PACKED_BACKWARD = tuple(
    sorted({pooling.packed_backward_launch(size).size for size in PACKED_FORWARD})
)
# The largest of a lane and of several, which take the most registers: in float16 too, on one
# architecture.
LARGEST = (pooling.LARGEST_PACKED_BACKWARD, max(pooling.PACKED_SIZES), pooling.LARGEST)


@dataclass(frozen=True)
class Case:
    """One compilation: a kernel, the types of its arguments and its constants."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...]
    warps: int
    stages: int = 3
    columns_per_warp: int = 0


@dataclass(frozen=True)
class Report:
    """What a cubin holds.

    Attributes:
        name: of the case, such as "gpo-forward-36-bf16".
        capability: 80, 90 or 100.
        registers: per thread.
        spills: instructions that store to or load from local memory.
        shared_bytes: per program.
        instructions: in all.
        tensor_core: the kinds of instruction that multiply matrices, separated by spaces.
        wide_addresses: address computations with a 64-bit offset, before lowering.
        packed_minima: instructions that take the minimum or maximum of two pairs of 16-bit floats.
        pipes: instructions by pipe, such as "alu 750 issue 1140"; every one counts once.
        columns_per_warp: columns that a warp pools; 0 of other kernels.
        cpu_seconds: of compiling, child processes included.
        triton_version: of the compiler.
    """

    name: str
    capability: int
    registers: int
    spills: int
    shared_bytes: int
    instructions: int
    tensor_core: str
    wide_addresses: int
    packed_minima: int
    pipes: str
    columns_per_warp: int
    cpu_seconds: float
    triton_version: str


def pooling_cases() -> Iterator[Case]:
    """Forward and backward of every size of the network and of the sort, per dtype."""
    sizes = [*pooling.NETWORK_SIZES, 100, 256]
    for dtype, pointer in POINTERS.items():
        for positions in sizes:
            for backward in (False, True):
                yield pooling_case(positions, dtype, pointer, backward)


def pooling_case(positions: int, dtype: torch.dtype, pointer: str, backward: bool) -> Case:
    choose = pooling.backward_launch if backward else pooling.forward_launch
    launch = choose(positions)
    common = {"features": pointer, "lengths": "*i64", "table": "*fp32", "rows": "*i64"}
    results = (
        {"features_gradient": pointer, "partial": "*fp32"} if backward else {"pooled": pointer}
    )
    types = {**({"gradient": pointer} if backward else {}), **common}
    constants: dict[str, Any] = {"SIZE": launch.size, "COLUMNS": launch.columns}
    network = bool(launch.parts)
    if network:
        constants["PARTS"] = launch.parts
    elif backward:
        types["order"] = "*u8"
    else:
        results["order"] = "*u8"
        constants["KEEP"] = True
    sizes = ("K", "D", "stride_sample", "stride_position")
    types |= results | dict.fromkeys(sizes, "i32")
    aligned = [name for name, kind in types.items() if kind.startswith("*")]
    aligned += [name for name in sizes if name != "K" or positions % 16 == 0]
    kernel = getattr(
        gpo, f"{'network' if network else 'sort'}_{'backward' if backward else 'forward'}"
    )
    name = f"gpo-{'backward' if backward else 'forward'}-{positions}-{SHORT[dtype]}"
    columns = launch.columns // launch.warps
    return Case(
        name, kernel, types, constants, tuple(aligned), launch.warps, columns_per_warp=columns
    )


def packed_cases(capability: int) -> Iterator[Case]:
    """The pooling of pairs of columns: as launched, and with the largest network alone.

    Only with one network are all instructions executed, so that they can be counted.
    """
    for backward in (False, True):
        for size in PACKED_BACKWARD if backward else PACKED_FORWARD:
            sizes = packed_launch(size, backward).sizes
            yield packed_case(size, sizes, torch.bfloat16, backward)
            if size in COUNTED or (size in LARGEST and capability == 90):
                yield packed_case(size, sizes, torch.float16, backward)
            if size in COUNTED and len(sizes) > 1 and capability == 90:
                yield packed_case(size, sizes[-1:], torch.bfloat16, backward)


def packed_launch(size: int, backward: bool) -> pooling.Launch:
    choose = pooling.packed_backward_launch if backward else pooling.packed_forward_launch
    return choose(size)


def packed_case(size: int, sizes: tuple[int, ...], dtype: torch.dtype, backward: bool) -> Case:
    launch = packed_launch(size, backward)
    pointer = POINTERS[dtype]
    types = {"features": pointer, "lengths": "*i64", "table": "*fp32", "rows": "*i64"}
    if backward:
        types |= {"gradient": pointer, "features_gradient": pointer, "partial": "*fp32"}
    else:
        types["pooled"] = pointer
    types |= dict.fromkeys(("K", "PAIRS", "stride_sample", "stride_position"), "i32")
    alone = "-alone" if sizes != launch.sizes else ""
    return Case(
        f"gpo-packed-{'backward' if backward else 'forward'}-{size}{alone}-{SHORT[dtype]}",
        packed.packed_backward if backward else packed.packed_forward,
        types,
        {"SIZES": sizes, "LANES": launch.lanes, "COLUMNS": launch.columns, "ASSEMBLY": True},
        tuple(name for name, kind in types.items() if kind.startswith("*")),
        launch.warps,
        columns_per_warp=2 * launch.columns // launch.warps,
    )


def mining_cases(capability: int) -> Iterator[Case]:
    """The mining kernels per dtype: rows alone, with columns, and what the first leaves over."""
    for dtype, pointer in POINTERS.items():
        blocks = mining.blocks(dtype, capability // 10)
        types = {"queries": pointer, "candidates": pointer}
        types |= dict.fromkeys(("query_ids", "candidate_ids"), "*i32") | {"left_over": "*i1"}
        types |= dict.fromkeys(("row_keys", "column_keys"), "*i64")
        types |= dict.fromkeys(("M", "N", "E", "stride_query", "stride_candidate"), "i32")
        constants = {
            "ROWS": blocks.rows,
            "COLUMNS": blocks.columns,
            "DEPTH": blocks.depth,
            "GROUP": blocks.group,
            "UPCAST": False,
            "PRECISION": blocks.precision,
        }
        shape = (tuple(types), blocks.warps, blocks.stages)
        for sides in ("both", "rows"):
            both = {"BOTH": sides == "both"}
            name = f"hardest-{sides}-{SHORT[dtype]}"
            yield Case(name, hardest.mine, types, constants | both, *shape)
            odd = {"LOWEST": LOWEST, "PART": blocks.part}
            name = f"hardest-odd-{sides}-{SHORT[dtype]}"
            yield Case(name, hardest.mine_left_over, types, constants | both | odd, *shape)


def reduce_case() -> Case:
    types = {"sums": "*fp32", "rows": "*i64", "table_gradient": "*fp32", "B": "i32", "K": "i32"}
    constants = {"SAMPLES": 64, "POSITIONS": 64}
    return Case("gpo-reduce", gpo.reduce_rows, types, constants, tuple(types), 4)


def all_cases(capability: int) -> list[Case]:
    return [*pooling_cases(), *packed_cases(capability), reduce_case(), *mining_cases(capability)]


def compile_case(case: Case, capability: int) -> Report:
    """Compile as the JIT would for aligned pointers and sizes, and read the machine code."""
    begun = sum(os.times()[:4])
    names = case.kernel.arg_names
    specialized = {p.name for p in case.kernel.params if not p.do_not_specialize_on_alignment}
    types = {name: case.types.get(name, "constexpr") for name in names}
    source = ASTSource(
        case.kernel,
        signature=types,
        constexprs={(names.index(name),): value for name, value in case.constants.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]]
            for name in specialized.intersection(case.aligned)
        },
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": case.warps, "num_stages": case.stages},
    )
    seconds = sum(os.times()[:4]) - begun
    if case.constants.get("LANES", 1) > 1:
        expect_threads_in_order(compiled.asm["ttgir"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = run_tool("cuobjdump", "--dump-resource-usage", file.name)
        code = run_tool("nvdisasm", "-c", file.name)
    operations = Counter(
        re.findall(
            r"^\s*(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)[ .;]", code, re.M
        )
    )
    registers = re.search(r"REG:(\d+)", usage)
    if registers is None:
        raise RuntimeError(f"{case.name}: cuobjdump named no registers")
    return Report(
        name=case.name,
        capability=capability,
        registers=int(registers[1]),
        spills=operations["STL"] + operations["LDL"],
        shared_bytes=compiled.metadata.shared,
        instructions=sum(operations.values()),
        tensor_core=" ".join(sorted(name for name in operations if name.endswith("MMA"))),
        wide_addresses=len(re.findall(r"tt\.addptr .*i64(?:>|$)", compiled.asm["ttir"], re.M)),
        packed_minima=operations["HMNMX2"],
        pipes=" ".join(f"{pipe} {count}" for pipe, count in sorted(by_pipe(operations).items())),
        columns_per_warp=case.columns_per_warp,
        cpu_seconds=round(seconds, 1),
        triton_version=triton.__version__,
    )


def expect_threads_in_order(code: str) -> None:
    """Raise unless networks over lanes see element t of a tensor in lane t % 32 of warp t // 32."""
    plain = r"#ttg\.blocked<\{sizePerThread = \[1\], threadsPerWarp = \[32\], .*order = \[0\]\}>"
    lanes = r"lane = \[\[1\], \[2\], \[4\], \[8\], \[16\]\]"
    warps = r"warp = \[(?:\[32\], \[64\])?\], block = \[\]"
    linear = rf"#ttg\.linear<\{{register = \[\], {lanes}, {warps}\}}>"
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\..*)$", code, re.M))
    networks = re.findall(r"tt\.elementwise_inline_asm .*shfl\.sync.* : (tensor.*)", code)
    used = {name for types in networks for name in re.findall(r", (#\w+)>", types)}
    if not used:
        raise RuntimeError("no network over lanes was found")
    for name in used:
        if not re.fullmatch(f"{plain}|{linear}", layouts[name]):
            raise RuntimeError(f"threads are in another order: {layouts[name]}")


def run_tool(name: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capability", type=int, choices=(80, 90, 100))
    parser.add_argument("pattern", nargs="*", default=["*"])
    arguments = parser.parse_args()
    writer = csv.DictWriter(sys.stdout, [field.name for field in fields(Report)])
    writer.writeheader()
    for case in all_cases(arguments.capability):
        if not any(fnmatch(case.name, pattern) for pattern in arguments.pattern):
            continue
        writer.writerow(asdict(compile_case(case, arguments.capability)))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
