"""Processor time of the hinge loss, of mining and of pooling, beside those of another checkout.

    git worktree add ../before 7f4f9ca
    python tests/scaling/against_checkout.py ../before [ROUNDS]

prints a table of docs/scaling.md. Each checkout has two processes, which are the two ranks of the
loss; mining and pooling run in the first of them. Checkouts take turns, one thread a process, and
the least of five runs counts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F

HERE = Path(__file__).resolve().parents[2]
RUNS = 5
ROWS = 4096  # of each side that is mined
IMAGES, DIM = 410, 256  # of a rank: with five captions an image, 4,100 pairs of both


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--rank"]:
        serve(int(arguments[1]), arguments[2])
        return
    if not arguments:
        raise SystemExit("give the folder of another checkout, as above")
    rounds = int(arguments[1]) if len(arguments) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            Checkout(path, Path(folder, name))
            for name, path in (("before", Path(arguments[0]).resolve()), ("now", HERE))
        ]
        print("| case | before, CPU ms | now, CPU ms | now / before (each turn) |")
        print("|---|---:|---:|---|")
        for case in CASES:
            turns = [[side.milliseconds(case) for side in sides] for _ in range(rounds + 1)][1:]
            quotients = [now / before for before, now in turns]
            each = ", ".join(f"{quotient:.2f}" for quotient in quotients)
            before, now = (f"{statistics.median(times):.0f}" for times in zip(*turns, strict=True))
            quotient = f"{statistics.median(quotients):.2f} ({each})"
            print(f"| {case} | {before} | {now} | {quotient} |", flush=True)
        for side in sides:
            side.close()


class Checkout:
    """Two ranks that import a checkout's packages."""

    def __init__(self, root: Path, rendezvous: Path) -> None:
        folders = os.pathsep.join(map(str, (root, root / "kernels", root / "shards")))
        self._ranks = [
            subprocess.Popen(
                [sys.executable, __file__, "--rank", str(rank), str(rendezvous)],
                env=os.environ | {"PYTHONPATH": folders, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for rank in (0, 1)
        ]  # fmt: skip
        for rank in self._ranks:
            found = Path(self._answer(rank))
            assert found.is_relative_to(root), f"{found} is not of {root}"

    def milliseconds(self, case: str) -> float:
        """Return the mean of the ranks that ran the case."""
        ranks = self._ranks if case.startswith("hinge") else self._ranks[:1]
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write(f"{case}\n")
            rank.stdin.flush()
        return statistics.mean(1e3 * float(self._answer(rank)) for rank in ranks)

    def close(self) -> None:
        for rank in self._ranks:
            rank.communicate()

    @staticmethod
    def _answer(rank: subprocess.Popen[str]) -> str:
        assert rank.stdout is not None
        return rank.stdout.readline().strip()


def serve(rank: int, rendezvous: str) -> None:
    """Run the cases that are asked for, and answer with seconds of the processor."""
    import vse_scale

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    print(vse_scale.__file__, flush=True)
    for line in sys.stdin:
        run = CASES[line.strip()](rank)
        print(min(map(seconds, [run] * RUNS)), flush=True)
    dist.destroy_process_group()


def seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def unit_rows(seed: int, *shape: int) -> torch.Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=-1).requires_grad_()


def hinge(mode: str, captions: int) -> Callable[[int], Callable[[], None]]:
    def case(rank: int) -> Callable[[], None]:
        from vse_scale.objective import global_hinge_loss

        images = IMAGES * 5 // captions
        rows, columns = unit_rows(rank, images, DIM), unit_rows(9 + rank, images * captions, DIM)
        ids = (rank * images + torch.arange(images)).repeat_interleave(captions)
        valid = torch.ones_like(ids, dtype=torch.bool)
        return lambda: global_hinge_loss(
            rows, columns, ids=ids, valid=valid, mode=mode
        ).loss.backward()  # type: ignore[arg-type]

    return case


def mining(dtype: torch.dtype) -> Callable[[int], Callable[[], object]]:
    def case(rank: int) -> Callable[[], object]:
        from vse_kernels import hardest_negatives

        rows, columns = (unit_rows(seed, ROWS, DIM).detach().to(dtype) for seed in (1, 2))
        ids = torch.arange(ROWS)
        return lambda: hardest_negatives(rows, columns, ids, ids)

    return case


def pooling(samples: int, positions: int) -> Callable[[int], Callable[[], None]]:
    def case(rank: int) -> Callable[[], None]:
        from vse_kernels import gpo_pool

        features = torch.randn(samples, positions, 1024).requires_grad_()
        lengths = torch.arange(samples) % positions + 1
        table = torch.rand(positions, positions).softmax(1).requires_grad_()
        return lambda: gpo_pool(features, lengths, table, lengths - 1).sum().backward()

    return case


CASES: dict[str, Callable[[int], Callable[[], object]]] = {
    "hinge, hardest, five captions an image": hinge("hardest", 5),
    "hinge, all violations, five captions an image": hinge("all", 5),
    "hinge, hardest, one caption an image": hinge("hardest", 1),
    "mining, 4,096 by 4,096": mining(torch.float32),
    "mining, 4,096 by 4,096, bfloat16": mining(torch.bfloat16),
    "pooling, 128 of 36 positions": pooling(128, 36),
    "pooling, 32 of 256 positions": pooling(32, 256),
}

if __name__ == "__main__":
    main(sys.argv[1:])
