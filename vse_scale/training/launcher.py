"""``python -m vse_scale.training.launcher``: DeepSpeed's launcher, which dies with its parent."""

from __future__ import annotations

import os

from vse_scale.training.contract import LAUNCHER, SUPERVISOR
from vse_scale.training.parent import die_with_parent


def main() -> None:
    """Run DeepSpeed's launcher of one machine with this process's arguments."""
    die_with_parent(int(os.environ[SUPERVISOR]))
    os.environ[LAUNCHER] = str(os.getpid())
    from deepspeed.launcher.launch import main as launch

    launch()


if __name__ == "__main__":
    main()
