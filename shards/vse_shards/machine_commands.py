"""The commands of a build on many machines: ``plan``, ``make`` and ``seal``."""

from __future__ import annotations

from typing import Annotated

import typer

from vse_shards import reports
from vse_shards.command_options import (
    AllowLeaks,
    AllowMissing,
    AllowOutside,
    Columns,
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
    PrefixIds,
    Quality,
    Quoting,
    Seed,
    ShardSamples,
    SourceName,
    Splits,
    Workers,
    open_rows,
    read_limit,
)
from vse_shards.errors import SourceError
from vse_shards.machines import Part, make, seal
from vse_shards.planning import make_plan
from vse_shards.ray_engine import make_with_ray
from vse_shards.system import cores

Planned = Annotated[
    str, typer.Argument(help="Folder or URL of the dataset, seen by all machines.", metavar="DIR")
]


def plan_command(
    out: Planned,
    source: SourceName,
    input: Input,
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
    no_images: NoImages = False,
    no_regions: NoRegions = False,
    json: Json = False,
) -> None:
    """Plan a build on many machines: rows, splits and shards."""
    rows, options = open_rows(locals())
    reports.show_plan(*make_plan(rows, out, options), out, as_json=json)


def make_command(
    out: Planned,
    shards: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="Part I of N, numbered from 0, as the tasks of a SLURM array."
        ),
    ] = "0/1",
    workers: Workers = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="ray[://HOST:PORT]",
            help="Let the workers of a Ray cluster make all parts; ray alone: of RAY_ADDRESS, or "
            "of this machine.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make one part of a planned dataset's shards, on any machine. The same command resumes."""
    part = Part.parse(shards)
    if engine is not None:
        if part != Part() or workers is not None:
            raise SourceError(
                "--engine makes all parts, with the cores of its cluster; omit --shards and "
                "--workers"
            )
        reports.show_made(make_with_ray(out, engine), part, out, as_json=json)
        return
    reports.show_made(make(out, part, workers or cores()), part, out, as_json=json)


def seal_command(
    out: Planned,
    max_rejects: MaxRejects = "",
    allow_leaks: AllowLeaks = False,
    json: Json = False,
) -> None:
    """Make a dataset of the planned shards, once all are made."""
    summary = seal(out, read_limit(max_rejects) if max_rejects else None, allow_leaks=allow_leaks)
    if summary is None:
        reports.show_sealed(out, as_json=json)
    else:
        reports.show_summary(summary, out, as_json=json)
