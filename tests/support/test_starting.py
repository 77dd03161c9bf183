"""How tests start ranks: places and ports, the first failure's words, and nothing left behind."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from groups import Group
from ranks import environment_without_launcher, rank_environment, run_ranks
from warm import WarmGroup

TELL = """
import os, sys
print(os.environ["RANK"], os.environ["WORLD_SIZE"], os.getcwd(), *sys.argv[1:])
print(os.environ["MASTER_PORT"], file=sys.stderr)
"""
# Rank 1 fails while the others have a child each and would wait for an hour.
FAIL = """
import os, pathlib, subprocess, sys, time
rank = os.environ["RANK"]
if rank == "1":
    while len(list(pathlib.Path().glob("child-*"))) < 2:
        time.sleep(0.01)
    sys.exit("the third image is broken")
child = subprocess.Popen(["sleep", "3600"])
partial = pathlib.Path(f"partial-{rank}")
partial.write_text(str(child.pid))
partial.rename(f"child-{rank}")
time.sleep(3600)
"""


def gone(pid: int, within: float = 10) -> bool:
    """Whether the process has ended, or does so in some seconds: a killed one takes a moment."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_each_rank_has_its_place_and_all_have_one_port(tmp_path: Path) -> None:
    (tmp_path / "tell.py").write_text(TELL)
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    said = run_ranks(2, tmp_path / "tell.py", "x", cwd=folders)
    assert [one.out for one in said] == [f"{n} 2 {folders[n]} x\n" for n in range(2)]
    assert said[0].err == said[1].err
    assert int(said[0].err) > 0
    shared = run_ranks(2, tmp_path / "tell.py", cwd=tmp_path)
    assert [one.out for one in shared] == [f"{n} 2 {tmp_path}\n" for n in range(2)]
    assert run_ranks(1, "-m", "platform", "--terse")[0].out.startswith("Linux")


def test_the_first_to_fail_is_heard_and_the_others_are_killed(tmp_path: Path) -> None:
    (tmp_path / "fail.py").write_text(FAIL)
    began = time.monotonic()
    with pytest.raises(
        AssertionError, match="rank 1 of 3 failed first, with exit code 1:\n\nthe thi"
    ):
        run_ranks(3, tmp_path / "fail.py", cwd=tmp_path, timeout=300)
    assert time.monotonic() - began < 60
    children = [int(path.read_text()) for path in tmp_path.glob("child-*")]
    assert len(children) == 2
    assert all(gone(pid) for pid in children)


def test_time_runs_out(tmp_path: Path) -> None:
    (tmp_path / "wait.py").write_text("import time; print('here', flush=True); time.sleep(3600)")
    with pytest.raises(AssertionError, match=r"rank 0 of 2 was still running when time was up"):
        run_ranks(2, tmp_path / "wait.py", timeout=1)


def test_a_group_is_waited_for_and_leaves_nothing_behind(tmp_path: Path) -> None:
    # The program ends at once; its child would stay.
    command = ["bash", "-c", "sleep 3600 & echo $!; exit 7"]
    with Group(command, environment_without_launcher(), tmp_path / "log") as group:
        assert group.wait(60) == 7
        child = int(group.said())
        assert psutil.pid_exists(child)
        assert not group.wait_for_words("never said")
    assert gone(child)


@pytest.mark.slow
def test_a_number_that_comes_again_brings_no_exit_code_of_before(tmp_path: Path) -> None:
    """The system numbers processes anew after some ten thousands."""
    (tmp_path / "seven.py").write_text("import sys; sys.exit(7)")
    (tmp_path / "wait.py").write_text("import time; time.sleep(3600)")
    started = partial(WarmGroup, environment=environment_without_launcher(), out=tmp_path / "log")
    with started([sys.executable, tmp_path / "seven.py"]) as first:
        assert first.wait(60) == 7
        assert psutil.Process(first.pid).status() == psutil.STATUS_ZOMBIE  # nobody gets its number
    assert not psutil.pid_exists(first.pid)
    for _ in range(20):
        with suppress(OSError):  # the right to choose the next number is root's
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
        with started([sys.executable, tmp_path / "wait.py"]) as second:
            assert second.code() is None
            first.kill()  # once more: it is nobody's
            assert not gone(second.pid, within=0.2)
        assert second.code() == -9
        if second.pid == first.pid:
            return
    pytest.skip("no number came again")


def test_a_users_shell_has_nothing_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rank_environment(1, 2, 3).items():
        monkeypatch.setenv(name, value)
    left = environment_without_launcher()
    assert rank_environment(1, 2, 3).items() - left.items() == {
        ("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_SIZE", "2"),
        ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "3"),
    }  # fmt: skip
