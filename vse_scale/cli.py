"""The ``vse-scale`` command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vse_scale.commands.bench import bench
from vse_scale.commands.common import check_writable
from vse_scale.commands.evaluate import evaluate
from vse_scale.commands.interchange import export_model, import_model
from vse_scale.commands.report import report
from vse_scale.commands.search import embed, search
from vse_scale.console import configure_logging, log
from vse_scale.errors import ConfigError, UserError

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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved configuration; start nothing")
    ] = False,
) -> None:
    """Train on this machine through DeepSpeed's launcher; started again where it dies.

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


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option(help="a run's configuration")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.key=value ...]")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="ranks of this machine; default: one per GPU, or one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Say what this machine and a configuration will do, and what is missing.

    Leaves with exit code 2 where something would keep the run from starting.
    """
    log.info("looking at this machine")
    import torch

    from vse_scale.config import Config
    from vse_scale.planning import doctor

    checked = Config.load(config, overrides) if config is not None else None
    findings = doctor.examine(checked, ranks or max(1, torch.cuda.device_count()))
    if as_json:
        print(json.dumps(doctor.as_json(findings), indent=1))
    else:
        print(doctor.page(findings))
    raise typer.Exit(UserError.exit_code if doctor.faults(findings) else 0)


@app.command()
def plan(
    config: Annotated[Path, typer.Option(help="a run's configuration, such as a recipe")],
    gpus: Annotated[list[int], typer.Option(min=1, help="ranks in all; may be repeated")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.key=value ...]")
    ] = None,
    measure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="time a few steps here, on data.path, and keep that"),
    ] = None,
    constants: Annotated[
        Path | None, typer.Option(help="what --measure wrote, perhaps edited")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Say on paper what a run takes on many ranks: memory by part, and bytes that are sent.

    With a machine's constants also the time of a step by part, and which resource binds.
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
    print(json.dumps(plan.as_json(), indent=1) if as_json else plan.text())


app.command("eval")(evaluate)
app.command()(embed)
app.command()(search)
app.command()(report)
app.command()(bench)
app.command("import")(import_model)
app.command("export")(export_model)


def main() -> None:
    """Run the command line; what the user can mend is one line on standard error."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    configure_logging(main=os.environ.get("RANK", "0") == "0")
    try:
        app(standalone_mode=True)
    except UserError as error:
        if debug:
            raise
        print(f"vse-scale: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
