"""Options of the commands of ``vse-shards``, and the reading of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from vse_shards.carve import Carving
from vse_shards.checks import refuse_nested
from vse_shards.errors import SourceError
from vse_shards.images import ImageOptions
from vse_shards.options import BuildOptions
from vse_shards.sources import Source
from vse_shards.sources.registry import SOURCES, SourceRequest, open_source
from vse_shards.system import cores
from vse_shards.threshold import RejectLimit

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")]
SourceName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"Layout of the input: {', '.join(SOURCES.names())}; or module:Class.",
    ),
]
Input = Annotated[str, typer.Option(help="File, folder or URL to read.")]
Images = Annotated[str | None, typer.Option(help="Folder of the images.")]
Splits = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=SPLIT[,SPLIT]|NAME=P%",
        help="Build split NAME from these splits of the source, and no others; or carve it out "
        "of train, P percent of the images. Repeatable.",
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=COLUMN",
        help="Column or key that holds NAME: image, caption, split, image_id or caption_id; "
        "captions may be in several (caption=A,B). Repeatable.",
    ),
]
Header = Annotated[
    str | None,
    typer.Option(help="none: a table's first line is a row; columns are numbered from 1."),
]
Quoting = Annotated[
    str | None, typer.Option(help="none: quotes in a table are a part of its text.")
]
PrefixIds = Annotated[
    bool,
    typer.Option(
        "--prefix-ids", help="Put file and folder before each id, where ids of two sets clash."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Read the first N rows only.")]
MaxRejects = Annotated[
    str,
    typer.Option(
        metavar="N|P%",
        help="Rows that may be rejected before the build ends; default: 1%, or 10 if more.",
        show_default=False,
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option("--allow-missing", help="Reject rows without their image, incomplete tars."),
]
AllowLeaks = Annotated[
    bool, typer.Option("--allow-leaks", help="Accept images that are in two splits.")
]
AllowOutside = Annotated[
    bool,
    typer.Option("--allow-outside", help="Read images outside --images, if a row names them."),
]
NoImages = Annotated[
    bool, typer.Option("--no-images", help="Store region features only, where there are both.")
]
NoRegions = Annotated[
    bool, typer.Option("--no-regions", help="Store images only, where there are both.")
]
MaxSide = Annotated[
    int | None, typer.Option(min=8, help="Shrink images whose longest side exceeds N pixels.")
]
Quality = Annotated[int, typer.Option(min=1, max=100, help="Quality of re-encoded JPEGs.")]
KeepBytes = Annotated[
    bool,
    typer.Option(
        "--keep-bytes", help="Store progressive and large RGB JPEGs unchanged, if upright."
    ),
]
KeepExif = Annotated[
    bool, typer.Option("--keep-exif", help="Keep in stored JPEGs where the photo was taken.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the shuffle.")]
ShardSamples = Annotated[int, typer.Option(min=1, help="Images per shard, before rejects.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a dataset of another build.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show the first rows as they would be stored, and write nothing."
    ),
]


def open_rows(given: Mapping[str, Any]) -> tuple[Source, BuildOptions]:
    """Open the source of a command that builds, and return it with the options of the build.

    Args:
        given: parameters of the command by name, as typer read them.

    Raises:
        SourceError: a value is none that the option takes, or the source cannot be opened.
        OutputError: the output lies in the input, or the input in it.
    """
    splits, carvings = read_splits(given["split"] or [])
    request = SourceRequest(
        input=given["input"],
        images=given["images"],
        columns=read_columns(given["column"] or []),
        header=given["header"],
        quoting=given["quoting"],
        wanted=splits,
        use_images=not given["no_images"],
        use_regions=not given["no_regions"],
        allow_missing=given["allow_missing"],
        allow_outside=given["allow_outside"],
    )
    options = BuildOptions(
        image=ImageOptions(
            given["max_side"], given["quality"], given["keep_bytes"], given["keep_exif"]
        ),
        shard_samples=given["shard_samples"],
        seed=given["seed"],
        splits=splits,
        carvings=carvings,
        prefix_ids=given["prefix_ids"],
        limit=given["limit"],
        workers=given["workers"] or cores(),
        max_rejects=read_limit(given["max_rejects"]),
        allow_missing=given["allow_missing"],
        allow_leaks=given["allow_leaks"],
        allow_outside=given["allow_outside"],
        overwrite=given.get("overwrite", False),
    )
    rows = open_source(given["source"], request)
    refuse_nested(given["input"], given["out"])
    return rows, options


def read_limit(text: str) -> RejectLimit:
    """Return the rejects that a build accepts; "" stands for the default.

    Raises:
        SourceError: the text is neither a number nor a share.
    """
    return RejectLimit.parse(text) if text else RejectLimit()


def read_columns(texts: list[str]) -> dict[str, str]:
    """Return the columns of each name; those of a name that is repeated, separated by commas.

    Raises:
        SourceError: a text is not NAME=COLUMN.
    """
    columns: dict[str, str] = {}
    for text in texts:
        name, value = _assignment(text)
        columns[name] = f"{columns[name]},{value}" if name in columns else value
    return columns


def read_splits(texts: list[str]) -> tuple[dict[str, str] | None, tuple[Carving, ...]]:
    """Return the new name of each selected split of the source, and the splits to carve out.

    Raises:
        SourceError: a text is not NAME=SPLIT or NAME=P%, or two contradict each other.
    """
    names: dict[str, str] = {}
    carvings: dict[str, Carving] = {}
    for text in texts:
        name, value = _assignment(text)
        carving = Carving.parse(name, value)
        if carving is not None:
            carvings[name] = carving
            continue
        for wanted in value.split(","):
            if names.setdefault(wanted, name) != name:
                raise SourceError(
                    f"--split maps {wanted!r} to both {names[wanted]!r} and {name!r}; choose one"
                )
    if sum(carving.percent for carving in carvings.values()) >= 100:
        raise SourceError(
            f"--split: {', '.join(carvings)} together take all of train; give smaller percentages"
        )
    return names or None, tuple(carvings.values())


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise SourceError(f"{text!r} is not NAME=VALUE")
    return name, value
