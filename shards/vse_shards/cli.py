"""The ``vse-shards`` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vse_shards.demo import make_demo
from vse_shards.errors import UserError

app = typer.Typer(
    name="vse-shards",
    help="Image-text datasets as checked, deterministic WebDataset shards. "
    "Add --debug to any command for the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Out = Annotated[Path, typer.Option("--out", help="Folder to write; made if missing.")]


@app.command()
def demo(
    out: Out,
    images: Annotated[int, typer.Option(help="Scenes to draw; the last 500 are split val.")] = 3500,
    seed: Annotated[int, typer.Option(help="Another seed gives other scenes.")] = 0,
) -> None:
    """Draw synthetic scenes with captions, as a jsonl source to build from."""
    make_demo(out, images, seed)


@app.callback()
def _commands() -> None:
    """Keep ``vse-shards COMMAND`` even with a single command."""


def main() -> None:
    """Run the command line; an error that the user can mend is one line and exit code 2."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        app(args=[a for a in arguments if a != "--debug"])
    except UserError as error:
        if debug:
            raise
        message = str(error).replace("\n", "\\n").replace("\r", "\\r")
        print(f"vse-shards: error: {message}", file=sys.stderr)
        sys.exit(error.exit_code)
