"""Training: the loop, DeepSpeed, schedules and checkpoints."""

import os
from pathlib import Path

# Without it DeepSpeed probes for accelerators at its import, and says so on standard output.
if not Path("/proc/driver/nvidia").exists():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
