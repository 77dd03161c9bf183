"""``vse-scale train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vse_scale.console import log


def train(
    config: Annotated[Path, typer.Option(help="the run's configuration, a YAML file")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.key=value ...]")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="processes; default: one per GPU, or one")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="restarts without a new checkpoint before it gives up")
    ] = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved configuration; start nothing")
    ] = False,
) -> None:
    """Train on this machine through DeepSpeed's launcher; restarts after a crash.

    The same command goes on from the newest checkpoint.
    """
    log.info("checking the configuration, the dataset and the run's folder")
    import torch

    from vse_scale.training.setup import check_run, load_config
    from vse_scale.training.supervisor import Supervisor

    processes = ranks or max(1, torch.cuda.device_count())
    arguments = list(overrides or [])
    checked = load_config(str(config), arguments, processes)
    if dry_run:
        from vse_scale.training.dry_run import describe_run

        print(describe_run(checked), end="")
        return
    check_run(checked, processes)
    supervisor = Supervisor(
        checked,
        ["--config", str(config), *arguments],
        ranks=processes,
        max_restarts=max_restarts,
    )
    raise typer.Exit(supervisor.run())
