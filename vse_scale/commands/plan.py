"""``vse-scale plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vse_scale.commands.common import Overrides, check_writable
from vse_scale.errors import ConfigError
from vse_shards.terminal import tell_json, tell_page


def plan(
    config: Annotated[Path, typer.Option(help="a run's configuration, such as a recipe")],
    gpus: Annotated[list[int], typer.Option(min=1, help="ranks in all; may be repeated")],
    overrides: Overrides = None,
    measure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="time a few steps here, on data.path, and write FILE",
        ),
    ] = None,
    constants: Annotated[
        Path | None, typer.Option(help="a file that --measure wrote, perhaps edited")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Estimate memory, traffic and step time on many ranks.

    The time of a step, and the resource that limits it, need a machine's constants.
    """
    from vse_scale.planning.constants import Constants
    from vse_scale.planning.page import Plan
    from vse_scale.training.setup import load_config

    if measure is not None and constants is not None:
        raise ConfigError("--measure writes the constants that --constants reads; give one of them")
    check_writable("--measure", measure)
    checked, *_ = (load_config(str(config), list(overrides or []), count) for count in gpus)
    found = Constants.load(constants) if constants is not None else None
    if measure is not None:
        from vse_scale.planning.measure import measure_machine

        found = measure_machine(checked, gpus)
        found.save(measure)
    plan = Plan.of(checked, gpus, found)
    tell_json(plan.as_json(), indent=1) if as_json else tell_page(plan.text())
