"""A checkpoint that each rank writes a part of: the bytes of the gathered one, or none at all."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from torch import Tensor
from warm import WarmGroup

from vse_scale.training.state import laid_out, write_tensors
from vse_scale.training.together import Target, sha256_of_pieces, write_pieces

SCRIPT = Path(__file__).with_name("rank_of_together.py")
TENSORS = {
    "a": torch.arange(1000.0).view(50, 20), "b": torch.tensor(3), "c": torch.ones(0),
    "d": torch.arange(7).to(torch.bfloat16),
}  # fmt: skip


def made(path: Path) -> tuple[Target, int]:
    head, starts, length = laid_out({n: (t.dtype, t.shape) for n, t in TENSORS.items()})
    return Target.made(path, head, starts, length), len(head)


def halves(target: Target) -> list[list[tuple[int, Tensor]]]:
    """Return what two ranks hold: halves of a, and of the rest one rank all."""
    starts, a = target.starts, TENSORS["a"].view(-1)
    rest = [(starts[name], TENSORS[name]) for name in "bd"]
    return [[(starts["a"], a[:333]), *rest], [(starts["a"] + 4 * 333, a[333:])]]


def silent() -> None:
    pass


def test_pieces_make_the_file_that_one_writes(tmp_path: Path) -> None:
    target, head = made(tmp_path / "together")
    pieces = [p for held in halves(target) for p in write_pieces(target, held, silent) or ()]
    digest = write_tensors(tmp_path / "alone", TENSORS)
    assert (tmp_path / "together").read_bytes() == (tmp_path / "alone").read_bytes()
    assert sha256_of_pieces(tmp_path / "together", head, pieces, silent) == digest
    assert digest == hashlib.sha256((tmp_path / "alone").read_bytes()).hexdigest()


@pytest.mark.parametrize("place", [-1, -20, -3000])
def test_a_byte_that_another_writer_lost_is_found(tmp_path: Path, place: int) -> None:
    target, head = made(tmp_path / "state")
    pieces = [p for held in halves(target) for p in write_pieces(target, held, silent) or ()]
    with (tmp_path / "state").open("r+b") as file:
        file.seek(place, 2)
        was = file.read(1)
        file.seek(place, 2)
        file.write(bytes([was[0] ^ 1]))
    with pytest.raises(OSError, match="the disk has other bytes than a rank wrote") as caught:
        sha256_of_pieces(tmp_path / "state", head, pieces, silent)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_part_that_nobody_holds_is_found(tmp_path: Path, lost: int) -> None:
    target, head = made(tmp_path / "state")
    pieces = [p for held in halves(target) for p in write_pieces(target, held, silent) or ()]
    with pytest.raises(RuntimeError, match=r"do not hold byte .* once between them"):
        sha256_of_pieces(
            tmp_path / "state", head, [*pieces[:lost], *pieces[lost + 1 :]], silent
        )  # fmt: skip


def test_a_file_that_is_not_seen_or_is_another_is_left_alone(tmp_path: Path) -> None:
    target, _ = made(tmp_path / "state")
    (tmp_path / "state").rename(tmp_path / "elsewhere")
    held = halves(target)[1]
    assert write_pieces(target, held, silent) is None
    (tmp_path / "state").write_bytes(b"a leftover")
    assert write_pieces(target, held, silent) is None
    assert (tmp_path / "state").read_bytes() == b"a leftover"
    assert write_pieces(target, [], silent) == []  # a rank with nothing to write need not see it


def test_an_end_at_once_is_one(tmp_path: Path) -> None:
    target, _ = made(tmp_path / "state")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pieces(target, halves(target)[0], stop)


def said_by_ranks(folder: Path, case: str) -> list[dict]:
    ranks = run_ranks(3, SCRIPT, folder / "c", case, start=WarmGroup)
    return [json.loads(one.out.splitlines()[-1]) for one in ranks]


def test_three_ranks_write_the_bytes_of_the_gathered_one(tmp_path: Path) -> None:
    for said in said_by_ranks(tmp_path, "plain"):
        assert (said["fault"], said["warned"]) == ("", [])
        assert len(said["digests"]) == 3
        assert len(set(said["digests"].values())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", ["unseen", "another"])
def test_without_a_shared_disk_the_first_gathers(tmp_path: Path, case: str) -> None:
    said = said_by_ranks(tmp_path, case)
    for one in said:
        assert one["fault"] == ""
        assert len(one["digests"]) == 3
        assert len(set(one["digests"].values())) == 1
    (warning,) = said[0]["warned"]  # once, of two checkpoints
    assert "run.dir is on a disk that not all ranks see" in warning
    assert said[1]["warned"] == said[2]["warned"] == []


@pytest.mark.slow
def test_the_disk_of_one_rank_may_take_longer_than_a_rank_is_waited_for(tmp_path: Path) -> None:
    for said in said_by_ranks(tmp_path, "slow"):
        assert said["fault"] == ""
        assert len(set(said["digests"].values())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "kind", "reason"),
    [
        ("full", "CheckpointError", "step-00000002: cannot be written (No space left on device"),
        ("torn", "StorageError", "(the disk has other bytes than a rank wrote"),
        ("folder", "CheckpointError", "/c: cannot be read (Not a directory)"),
    ],
)
def test_a_fault_of_one_rank_is_everyones_and_leaves_the_one_before(
    tmp_path: Path, case: str, kind: str, reason: str
) -> None:
    for said in said_by_ranks(tmp_path, case):
        assert said["fault"].startswith(f"{kind}: ")
        assert reason in said["fault"]
        if case != "folder":
            assert "step-00000001 stays" in said["fault"]
        assert [name for name in said["names"] if name.startswith("step")] == ["step-00000001"]
        assert not [name for name in said["names"] if name.endswith(".partial")]
