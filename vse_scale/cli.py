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
from vse_shards.usage import run

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
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
    """Train, evaluate and search by image-text retrieval models.

    vse-shards makes the datasets. Add --debug to any command for the traceback of an error.
    """


for _name, _command, _example in (
    ("train", train, "--config small data.path=data/mine run.dir=runs/mine"),
    ("doctor", doctor, "--config small data.path=data/mine"),
    ("plan", plan, "--config small --gpus 8 data.path=data/mine"),
    ("simulate", simulate, "--config small --nodes 8 --node-mb-s 1000 --step-ms 200"),
    ("eval", evaluate, "--model runs/mine --data data/mine --split val"),
    ("embed", embed, "--model runs/mine --images photos --out runs/photos"),
    ("index", index, "--index runs/photos --faiss IVF1024,PQ32"),
    ("search", search, '--index runs/photos "a dog in the snow" --html found.html'),
    ("serve", serve, "--index runs/photos"),
    ("report", report, "runs/mine"),
    ("bench", bench, "loader loss --small"),
    ("import", import_model, "model_best.pth --out models/published"),
    ("export", export_model, "--model runs/mine --out models/mine"),
    ("recipes", recipes, "small"),
    ("launch-files", launch_files, "cluster"),
):
    app.command(_name, epilog=f"Example: vse-scale {_name} {_example}")(_command)


@only_packages()
def main() -> None:
    """Run the command line; what the user can mend is one line on standard error."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    configure_logging(main=is_main(os.environ))
    try:
        code = run(app, "vse-scale", sys.argv[1:])
    except UserError as error:
        if debug:
            raise
        tell(f"vse-scale: error: {masked(str(error))}", sys.stderr)
        code = error.exit_code
    except OSError as error:
        if debug or not error.filename:
            raise
        said = f"{error.filename}: cannot be used ({error.strerror}); see to it, or name another"
        tell(f"vse-scale: error: {masked(said)}", sys.stderr)
        code = UserError.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
