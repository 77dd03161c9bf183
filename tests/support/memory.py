"""The most memory that a program held, as the kernel counts it for that program alone.

``ru_maxrss`` begins with what the parent held when it forked, and so hides whatever is smaller.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def peak_memory() -> int:
    """Return the most memory that this program held since `forget_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def forget_peak() -> int:
    """Begin the peak anew from what this program holds now, which is returned, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def run_alone(script: str, *arguments: object, seconds: float = 600) -> list[str]:
    """Run a script, which may import this module, in a program of its own; return its words."""
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", here + script, *map(str, arguments)],
        capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.split()
