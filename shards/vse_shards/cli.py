"""The ``vse-shards`` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vse_shards import __version__, reports
from vse_shards.append import append, options_of
from vse_shards.build import BuildOptions, build
from vse_shards.checks import refuse_nested
from vse_shards.command_options import (
    AllowLeaks,
    AllowMissing,
    AllowOutside,
    Columns,
    DryRun,
    Header,
    Images,
    Input,
    Json,
    KeepBytes,
    KeepExif,
    Limit,
    MaxRejects,
    MaxSide,
    NoImages,
    NoRegions,
    Overwrite,
    PrefixIds,
    Quality,
    Quoting,
    Seed,
    ShardSamples,
    SourceName,
    Splits,
    Workers,
    open_rows,
    read_columns,
    read_limit,
    read_splits,
)
from vse_shards.demo import make_demo
from vse_shards.dry_run import dry_run as read_first
from vse_shards.errors import DatasetError, SourceError, UserError
from vse_shards.machine_commands import make_command, plan_command, seal_command
from vse_shards.masking import masked
from vse_shards.merge import merge
from vse_shards.preview import write_preview
from vse_shards.remote import is_url
from vse_shards.sources.registry import SourceRequest, open_source
from vse_shards.system import cores, tidy_at_sigterm
from vse_shards.terminal import tell
from vse_shards.upgrade import upgrade
from vse_shards.usage import run
from vse_shards.verify import verify as verify_folder

app = typer.Typer(
    name="vse-shards",
    help="Image-text datasets as checked, deterministic WebDataset shards. "
    "Add --debug to any command for the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _local_folder(text: str) -> Path:
    if is_url(text):
        raise DatasetError(
            f"{text}: is remote, and this command reads a folder of this machine; copy the dataset "
            "there first (training compares every shard that it fetches by itself)"
        )
    return Path(text)


Folder = Annotated[
    Path, typer.Argument(help="Folder of a dataset.", metavar="DIR", parser=_local_folder)
]


def _print_version(requested: bool) -> None:
    if requested:
        tell(f"vse-shards {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Image-text datasets as checked, deterministic WebDataset shards."""


@app.command(epilog="Example: vse-shards demo --out scenes --images 2000")
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write, created if missing.")],
    images: Annotated[int, typer.Option(min=1, help="Scenes; the last 500 are split val.")] = 3500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes.")] = 0,
) -> None:
    """Draw scenes with captions, as a source for build."""
    make_demo(out, images, seed)


@app.command(
    "build",
    epilog="Example: vse-shards build --source jsonl --input captions.jsonl --out data/mine",
)
def build_command(
    source: SourceName,
    input: Input,
    out: Annotated[str, typer.Option(help="Folder or URL to write, created if missing.")],
    images: Images = None,
    max_side: MaxSide = None,
    quality: Quality = 90,
    keep_bytes: KeepBytes = False,
    keep_exif: KeepExif = False,
    shard_samples: ShardSamples = 1000,
    workers: Workers = None,
    seed: Seed = 0,
    split: Splits = None,
    column: Columns = None,
    header: Header = None,
    quoting: Quoting = None,
    prefix_ids: PrefixIds = False,
    limit: Limit = None,
    max_rejects: MaxRejects = "",
    allow_missing: AllowMissing = False,
    allow_leaks: AllowLeaks = False,
    allow_outside: AllowOutside = False,
    overwrite: Overwrite = False,
    no_images: NoImages = False,
    no_regions: NoRegions = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Check images and captions, and pack them into shards. The same command resumes."""
    rows, options = open_rows(locals())
    if dry_run:
        reports.show_dry_run(read_first(rows, options), as_json=json)
        return
    reports.show_summary(build(rows, out, options), out, as_json=json)


for _name, _command, _example in (
    ("plan", plan_command, "plan data/mine --source jsonl --input captions.jsonl"),
    ("make", make_command, "make data/mine --shards 0/8"),
    ("seal", seal_command, "seal data/mine"),
):
    app.command(_name, epilog=f"Example: vse-shards {_example}")(_command)


@app.command(
    "append", epilog="Example: vse-shards append data/mine --source jsonl --input captions.jsonl"
)
def append_command(
    folder: Folder,
    source: SourceName,
    input: Input,
    images: Images = None,
    workers: Workers = None,
    split: Splits = None,
    column: Columns = None,
    header: Header = None,
    quoting: Quoting = None,
    prefix_ids: PrefixIds = False,
    limit: Limit = None,
    max_rejects: MaxRejects = "",
    allow_missing: AllowMissing = False,
    allow_leaks: AllowLeaks = False,
    allow_outside: AllowOutside = False,
    no_images: NoImages = False,
    no_regions: NoRegions = False,
    json: Json = False,
) -> None:
    """Add the rows of a source that a dataset lacks. Its shards stay; the same command resumes."""
    splits, carvings = read_splits(split or [])
    if carvings:
        raise SourceError(
            "--split NAME=P% applies to build; append keeps the percentages of the dataset"
        )
    given = BuildOptions(
        splits=splits,
        prefix_ids=prefix_ids,
        limit=limit,
        workers=workers or cores(),
        max_rejects=read_limit(max_rejects),
        allow_missing=allow_missing,
        allow_leaks=allow_leaks,
        allow_outside=allow_outside,
    )
    options = options_of(str(folder), given)
    request = SourceRequest(
        input=input,
        images=images,
        columns=read_columns(column or []),
        header=header,
        quoting=quoting,
        wanted=options.splits,
        use_images=not no_images,
        use_regions=not no_regions,
        allow_missing=allow_missing,
        allow_outside=allow_outside,
    )
    rows = open_source(source, request)
    refuse_nested(input, str(folder))
    summary = append(rows, str(folder), options)
    reports.show_summary(summary, str(folder), as_json=json)


@app.command("merge", epilog="Example: vse-shards merge data/mine data/others --out data/both")
def merge_command(
    folders: Annotated[list[Path], typer.Argument(help="Folders of datasets.", metavar="DIR...")],
    out: Annotated[Path, typer.Option(help="Folder to write, created if missing.")],
    prefix_ids: Annotated[
        bool, typer.Option("--prefix-ids", help="Put the name of its dataset before each id.")
    ] = False,
    allow_leaks: AllowLeaks = False,
    json: Json = False,
) -> None:
    """Join datasets into one: shards are linked or copied. The same command resumes."""
    summary = merge(folders, out, prefix_ids=prefix_ids, allow_leaks=allow_leaks)
    reports.show_summary(summary, str(out), as_json=json)


@app.command("upgrade", epilog="Example: vse-shards upgrade data/mine")
def upgrade_command(folder: Folder, json: Json = False) -> None:
    """Rewrite a large dataset's index so that it opens at once. Tars stay."""
    reports.show_upgrade(folder, upgrade(folder), as_json=json)


@app.command(epilog="Example: vse-shards verify data/mine --deep")
def verify(
    folder: Folder,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every image.")] = False,
    json: Json = False,
) -> None:
    """Check manifest, sizes, digests and indices against the tars."""
    reports.show_verdict(verify_folder(folder, deep=deep), folder, as_json=json)


@app.command(epilog="Example: vse-shards info data/mine --json")
def info(folder: Folder, json: Json = False) -> None:
    """Print splits, captions, image sizes and rejects."""
    reports.show_info(folder, as_json=json)


@app.command(epilog="Example: vse-shards preview data/mine --out sample.html")
def preview(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    samples: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the selection.")] = 0,
    json: Json = False,
) -> None:
    """Write random samples to one HTML page."""
    reports.show_preview(write_preview(folder, out, samples=samples, seed=seed), as_json=json)


@tidy_at_sigterm()
def main() -> None:
    """Run the command line; a user's error is one line and exit code 2."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        code = run(app, "vse-shards", [a for a in arguments if a != "--debug"])
    except (UserError, OSError) as error:  # OSError: from remote storage, while reading rows
        if debug:
            raise
        message = str(error)
        if isinstance(error, OSError):
            message = f"{error.filename}: {error.strerror}" if error.filename else message
        tell(f"vse-shards: error: {masked(message)}", sys.stderr)
        code = getattr(error, "exit_code", UserError.exit_code)
    sys.exit(code)
