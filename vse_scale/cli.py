"""The ``vse-scale`` command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vse_scale.errors import ModelError, UserError

app = typer.Typer(
    help="Train, evaluate and look at image-text retrieval models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="the run's configuration, a YAML file")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.key=value ...]")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="processes; default: one per GPU, or one")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="how often to start again without a new checkpoint")
    ] = 3,
) -> None:
    """Train on this machine through DeepSpeed's launcher; started again where it dies.

    The same command goes on from the newest checkpoint.
    """
    import torch

    from vse_scale.training.supervisor import Supervisor
    from vse_scale.training.trainer import check_run

    processes = ranks or max(1, torch.cuda.device_count())
    arguments = list(overrides or [])
    checked = check_run(str(config), arguments, processes)
    supervisor = Supervisor(
        checked,
        ["--config", str(config), *arguments],
        ranks=processes,
        max_restarts=max_restarts,
    )
    raise typer.Exit(supervisor.run())


def main() -> None:
    """Run the command line; what the user can mend is one line on standard error."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app(standalone_mode=True)
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
