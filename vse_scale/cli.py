"""The ``vse-scale`` command."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vse_scale.commands.bench import bench
from vse_scale.commands.doctor import doctor
from vse_scale.commands.embed import embed
from vse_scale.commands.eval import evaluate
from vse_scale.commands.export_model import export_model
from vse_scale.commands.import_model import import_model
from vse_scale.commands.index import index
from vse_scale.commands.launch_files import launch_files
from vse_scale.commands.plan import plan
from vse_scale.commands.recipes import recipes
from vse_scale.commands.report import report
from vse_scale.commands.search import search
from vse_scale.commands.serve import serve
from vse_scale.commands.simulate import simulate
from vse_scale.commands.train import train
from vse_scale.console import configure_logging
from vse_scale.errors import UserError
from vse_scale.world.place import is_main
from vse_shards import __version__
from vse_shards.masking import masked
from vse_shards.system import only_packages
from vse_shards.terminal import tell

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        tell(f"vse-scale {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="print the version and exit"
        ),
    ] = False,
) -> None:
    """Train, evaluate and look at image-text retrieval models."""


app.command()(train)
app.command()(doctor)
app.command()(plan)
app.command()(simulate)
app.command("eval")(evaluate)
app.command()(embed)
app.command()(index)
app.command()(search)
app.command()(serve)
app.command()(report)
app.command()(bench)
app.command("import")(import_model)
app.command("export")(export_model)
app.command()(recipes)
app.command("launch-files")(launch_files)


@only_packages()
def main() -> None:
    """Run the command line; what the user can mend is one line on standard error."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    configure_logging(main=is_main(os.environ))
    try:
        app(standalone_mode=True)
    except UserError as error:
        if debug:
            raise
        tell(f"vse-scale: error: {masked(str(error))}", sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if debug or not error.filename:
            raise
        said = f"{error.filename}: cannot be used ({error.strerror}); see to it, or name another"
        tell(f"vse-scale: error: {masked(said)}", sys.stderr)
        sys.exit(UserError.exit_code)


if __name__ == "__main__":
    main()
