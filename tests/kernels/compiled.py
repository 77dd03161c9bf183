"""Compile every shipped kernel configuration ahead of time, without a GPU, and read the cubins.

A child process of the tests, because a process that interprets kernels cannot compile them:

    python tests/kernels/compiled.py CAPABILITY [PATTERN ...] > FILE.csv

writes one line per configuration for compute capability 80, 90 (sm_90a) or 100 (sm_100a). With
TRITON_ALWAYS_COMPILE=1 nothing comes from Triton's cache, and the seconds are those of compiling.
With --digests it compiles nothing and writes the digest of each configuration, of all three.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import inspect
import itertools
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# Both before the first import of triton.
os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"

import sass
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vse_kernels.contrastive import choice as contrastive
from vse_kernels.contrastive import triton as contrastive_triton
from vse_kernels.cost import by_pipe
from vse_kernels.gpo import choice as pooling
from vse_kernels.gpo import packed
from vse_kernels.gpo import triton as gpo
from vse_kernels.hardest import choice as mining
from vse_kernels.hardest import triton as hardest
from vse_kernels.hardest import violations_triton
from vse_kernels.hardest.launch import LOWEST

CAPABILITIES = (80, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Sizes that are compiled in another dtype too, and with one network, to count instructions.
COUNTED = (36, 64)
FORWARD = (*pooling.NETWORKS, *pooling.FORWARD_LANES)
BACKWARD = tuple(sorted({pooling.backward_launch(size).size for size in FORWARD}))
# Sizes that are compiled for odd widths too.
ODD = (36, 64, pooling.LARGEST_CODED)
# The largest of a lane and of several, which take the most registers: in another dtype too, on one
# architecture.
LARGEST = (pooling.LARGEST_BACKWARD, max(pooling.NETWORKS), pooling.LARGEST_CODED)
QUERY_CANDIDATE = ("query", "candidate")
# Of each kernel, the dtype that takes it most often, and another.
DTYPES = {"gpo": (torch.float32, torch.bfloat16), "gpo-packed": (torch.bfloat16, torch.float16)}


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
    scores_per_warp: int = 0


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
        pipes: instructions by pipe, such as "alu 750 issue 1140"; every one counts once. Of passes
            over scores, those of a usual tile outside of its loop.
        loop_pipes: of those passes, those of a step of the loop.
        columns_per_warp: columns that a warp pools; 0 of other kernels.
        scores_per_warp: scores of a warp's tile; 0 of other kernels.
        cpu_seconds: of compiling, child processes included.
        triton_version: of the compiler.
        digest: of the case and of the code that it was compiled from, see `digest_of`.
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
    loop_pipes: str
    columns_per_warp: int
    scores_per_warp: int
    cpu_seconds: float
    triton_version: str
    digest: str


def pooling_cases(capability: int) -> Iterator[Case]:
    """The pooling as launched, and with the largest network alone.

    Only with one network are all instructions executed, so that they can be counted.
    """
    first = capability == 90
    for kind, (common, other) in DTYPES.items():
        pairs = kind == "gpo-packed"
        for backward in (False, True):
            for size in BACKWARD if backward else FORWARD:
                coded = size <= pooling.LARGEST_CODED or not backward
                if pairs and not coded:
                    continue
                sizes = pooling_launch(size, backward).sizes
                yield pooling_case(kind, size, sizes, common, backward)
                # 16-bit floats are sorted in pairs where these can be coded.
                largest = size in LARGEST if pairs else not coded
                if (size in COUNTED and pairs) or (largest and first):
                    yield pooling_case(kind, size, sizes, other, backward)
                if pairs and first and size == COUNTED[0]:
                    yield pooling_case(kind, size, sizes, common, backward, indices="i32")
                if pairs and first and size in ODD:
                    yield pooling_case(kind, size, sizes[-1:], common, backward, words=False)
                if size in COUNTED and first and len(sizes) > 1:
                    yield pooling_case(kind, size, sizes[-1:], common, backward)


def pooling_launch(size: int, backward: bool) -> pooling.Launch:
    return (pooling.backward_launch if backward else pooling.forward_launch)(size)


def pooling_case(
    kind: str,
    size: int,
    sizes: tuple[int, ...],
    dtype: torch.dtype,
    backward: bool,
    words: bool = True,
    indices: str = "i64",
) -> Case:
    launch = pooling_launch(size, backward)
    pairs = kind == "gpo-packed"
    pointer = POINTERS[dtype]
    index = f"*{indices}"
    types = {"features": pointer, "lengths": index, "table": "*fp32", "rows": index}
    if backward:
        types |= {"gradient": pointer, "features_gradient": pointer, "partial": "*fp32"}
    else:
        types["pooled"] = pointer
    columns = "PAIRS" if pairs else "D"
    types |= dict.fromkeys(("K", columns, "stride_sample", "stride_position"), "i32")
    alone = "-alone" if sizes != launch.sizes else ""
    width = "" if words else "-odd"
    width += "" if indices == "i64" else f"-{indices}"
    direction = "backward" if backward else "forward"
    return Case(
        f"{kind}-{direction}-{size}{alone}{width}-{SHORT[dtype]}",
        getattr(packed if pairs else gpo, f"{'packed' if pairs else 'network'}_{direction}"),
        types,
        {"SIZES": sizes, "LANES": launch.lanes, "COLUMNS": launch.columns, "ASSEMBLY": True}
        | ({"WORDS": words} if pairs else {}),
        tuple(name for name, type_ in types.items() if type_.startswith("*")),
        launch.warps,
        columns_per_warp=(1 + pairs) * launch.columns // launch.warps,
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
        scores = blocks.rows * blocks.columns // blocks.warps
        shape = (tuple(types), blocks.warps, blocks.stages, 0)
        for sides in ("both", "rows"):
            both = {"BOTH": sides == "both"}
            name = f"hardest-{sides}-{SHORT[dtype]}"
            yield Case(name, hardest.mine, types, constants | both, *shape, scores)
            if (dtype, capability) == (torch.bfloat16, 90):
                # Ids that are a slice; the launcher aligns the matrices.
                rest = tuple(name for name in types if not name.endswith("_ids"))
                name = f"hardest-{sides}-unaligned-{SHORT[dtype]}"
                yield Case(name, hardest.mine, types, constants | both, rest, *shape[1:], scores)
            odd = {"LOWEST": LOWEST, "PART": blocks.part}
            name = f"hardest-odd-{sides}-{SHORT[dtype]}"
            yield Case(name, hardest.mine_left_over, types, constants | both | odd, *shape)


def violation_cases() -> Iterator[Case]:
    """The kernel of all violations: a positive a row, five, and five with limits."""
    for dtype, pointer in POINTERS.items():
        blocks = mining.VIOLATIONS[dtype]
        types = {"queries": pointer, "candidates": pointer}
        types |= dict.fromkeys(("query_ids", "candidate_ids"), "*i32")
        sides = [f"{side}_{what}" for what in ("thresholds", "limits") for side in QUERY_CANDIDATE]
        types |= dict.fromkeys(sides, "*fp32") | {"pull": pointer}
        for side in ("row", "column"):
            types |= {f"{side}_loss": "*fp32", f"{side}_count": "*i32"}
        sizes = ("M", "N", "E", "stride_query", "stride_candidate", "stride_pull")
        types |= dict.fromkeys(sizes, "i32")
        for positives, limited in (
            (1, False),
            (5, False),
            (5, True),
            (mining.MOST_POSITIVES, True),
        ):
            constants = {
                "ROWS": blocks.rows,
                "COLUMNS": blocks.columns,
                "DEPTH": blocks.depth,
                "GROUP": blocks.group,
                "POSITIVES": positives,
                "QUERY_LIMITED": limited,
                "CANDIDATE_LIMITED": limited,
                "UPCAST": False,
                "PRECISION": blocks.precision,
            }
            name = f"violations-{positives}{'-limited' * limited}-{SHORT[dtype]}"
            shape = (tuple(types), blocks.warps, blocks.stages)
            scores = blocks.rows * blocks.columns // blocks.warps
            kernel = violations_triton.violate
            yield Case(name, kernel, types, constants, *shape, scores_per_warp=scores)


def contrast_cases(capability: int) -> Iterator[Case]:
    """The kernel of contrastive losses: each kind, and with queries that count several times."""
    for dtype, pointer in POINTERS.items():
        types = {"queries": pointer, "candidates": pointer}
        types |= dict.fromkeys(("query_ids", "candidate_ids"), "*i32")
        floats = ("numbers", "query_shift", "candidate_shift", "query_times")
        types |= dict.fromkeys(floats, "*fp32") | {"weights": pointer}
        types |= dict.fromkeys(("row_sums", "column_sums"), "*fp32")
        sizes = ("M", "N", "E", "stride_query", "stride_candidate", "stride_weights")
        types |= dict.fromkeys(sizes, "i32")
        for kind, counted in itertools.product(("sums", "softmax", "sigmoid"), (False, True)):
            blocks = contrastive.blocks(kind, dtype, capability // 10)
            constants = {
                "KIND": kind,
                "COUNTED": counted,
                "UNIT": contrastive.unit(dtype),
                "ROWS": blocks.rows,
                "COLUMNS": blocks.columns,
                "DEPTH": blocks.depth,
                "GROUP": blocks.group,
                "UPCAST": False,
                "PRECISION": blocks.precision,
            }
            name = f"contrast-{kind}{'-counted' * counted}-{SHORT[dtype]}"
            shape = (tuple(types), blocks.warps, blocks.stages)
            scores = blocks.rows * blocks.columns // blocks.warps
            kernel = contrastive_triton.contrast
            yield Case(name, kernel, types, constants, *shape, scores_per_warp=scores)


def reduce_case() -> Case:
    types = {"sums": "*fp32", "rows": "*i64", "table_gradient": "*fp32", "B": "i32", "K": "i32"}
    constants = {"SAMPLES": 64, "POSITIONS": 64}
    return Case("gpo-reduce", gpo.reduce_rows, types, constants, tuple(types), 4)


def all_cases(capability: int) -> list[Case]:
    mined = (*mining_cases(capability), *violation_cases(), *contrast_cases(capability))
    return [*pooling_cases(capability), reduce_case(), *mined]


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
    operations = sass.operations(code)
    once, step = sass.usual_path(code) if case.scores_per_warp else (operations, Counter())
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
        pipes=in_words(by_pipe(once)),
        loop_pipes=in_words(by_pipe(step)),
        columns_per_warp=case.columns_per_warp,
        scores_per_warp=case.scores_per_warp,
        cpu_seconds=round(seconds, 1),
        triton_version=triton.__version__,
        digest=digest_of(case),
    )


def in_words(counts: Counter[str]) -> str:
    return " ".join(f"{pipe} {count}" for pipe, count in sorted(counts.items()) if count)


def digest_of(case: Case) -> str:
    """Return what a row of the table was compiled from, in twelve digits.

    That is the constants and types of the case, and the code of its kernel and of all of
    `vse_kernels` that it calls, without comments and docstrings.
    """
    described = [case.types, case.constants, case.aligned, case.warps, case.stages]
    text = "\n".join([repr(described), *code_of(case.kernel, set())])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def code_of(used: Any, seen: set[Any]) -> Iterator[str]:
    """Yield the code of a function, or the value of a constant, and of all names that it uses."""
    function = inspect.unwrap(getattr(used, "fn", used))
    if not inspect.isfunction(function):
        value = getattr(used, "value", used)  # of a tl.constexpr
        if isinstance(value, int | float | str | tuple):
            yield repr(value)
        return
    if function in seen or not function.__module__.startswith("vse_kernels."):
        return
    seen.add(function)
    lines, _ = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            text = node.body[0]
            lines[text.lineno - 1 : text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
    yield "".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))
    for name in sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}):
        yield from code_of(function.__globals__.get(name), seen)


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
    parser.add_argument("capability", type=int, nargs="?", choices=CAPABILITIES)
    parser.add_argument("pattern", nargs="*", default=["*"])
    parser.add_argument("--digests", action="store_true")
    arguments = parser.parse_args()
    named = ["name", "capability", "digest"]
    every = [field.name for field in fields(Report)]
    writer = csv.DictWriter(sys.stdout, named if arguments.digests else every)
    writer.writeheader()
    for capability in CAPABILITIES if arguments.digests else (arguments.capability,):
        for case in all_cases(capability):
            if arguments.digests:
                writer.writerow(
                    dict(zip(named, (case.name, capability, digest_of(case)), strict=True))
                )
            elif any(fnmatch(case.name, pattern) for pattern in arguments.pattern):
                writer.writerow(asdict(compile_case(case, capability)))
                sys.stdout.flush()


if __name__ == "__main__":
    main()
