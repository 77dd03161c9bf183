"""``vse-scale doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vse_scale.commands.common import Overrides
from vse_scale.console import log
from vse_scale.errors import UserError
from vse_shards.terminal import tell_json, tell_page


def doctor(
    config: Annotated[Path | None, typer.Option(help="a run's configuration")] = None,
    overrides: Overrides = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="ranks of this machine; default: one per GPU, or one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Check this machine and, with --config, a run on it.

    The exit code is 2 if a fault would keep the run from starting.
    """
    log.info("checking this machine")
    import torch

    from vse_scale.config import Config
    from vse_scale.planning.doctor import examine
    from vse_scale.planning.findings import as_json as to_json
    from vse_scale.planning.findings import faults, page

    checked = Config.load(config, overrides) if config is not None else None
    findings = examine(checked, ranks or max(1, torch.cuda.device_count()))
    if as_json:
        tell_json(to_json(findings), indent=1)
    else:
        tell_page(page(findings))
    raise typer.Exit(UserError.exit_code if faults(findings) else 0)
