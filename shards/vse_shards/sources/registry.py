"""Sources by their ``--source`` name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields

from vse_shards.errors import PartError, SourceError
from vse_shards.parts import Registry
from vse_shards.sources.base import Source

# Packages add sources of their own in the entry-point group.
SOURCES: Registry[Source] = Registry(
    "source",
    "vse_shards.sources",
    {
        "jsonl": "vse_shards.sources.jsonl:JsonlSource",
        "csv": "vse_shards.sources.tabular.source:CsvSource",
        "tsv": "vse_shards.sources.tabular.source:TsvSource",
        "parquet": "vse_shards.sources.tabular.source:ParquetSource",
        "json": "vse_shards.sources.tabular.source:JsonSource",
        "folder": "vse_shards.sources.folder:FolderSource",
        "karpathy": "vse_shards.sources.karpathy:KarpathySource",
        "coco": "vse_shards.sources.coco:CocoSource",
        "precomp": "vse_shards.sources.precomp:PrecompSource",
        "butd": "vse_shards.sources.butd:ButdSource",
        "webdataset": "vse_shards.sources.webdataset:WebDatasetSource",
    },
)

# An option of the command by the field that it sets. `wanted` is not here: a build selects splits
# of any source, and a source that takes the field only saves itself reading the others. Nor are
# `allow_missing` and `allow_outside`, which are options of the build too.
_FLAGS = {
    "images": "--images",
    "columns": "--column",
    "header": "--header",
    "quoting": "--quoting",
    "use_images": "--no-images",
    "use_regions": "--no-regions",
}


@dataclass(frozen=True)
class SourceRequest:
    """Options that select and describe a source.

    Attributes:
        input: path or URL.
        images: folder of the images, if given.
        columns: names of columns or keys in the file, by their standard names.
        header: ``none`` for a table whose first line is a row.
        quoting: ``none`` for a table whose quotes are part of the text.
        wanted: splits that the build selects; None selects all.
        use_images: False omits images that have region features.
        use_regions: False omits region features.
        allow_missing: set parts of the input aside that are incomplete.
        allow_outside: read files outside the folder of the images.
    """

    input: str
    images: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    header: str | None = None
    quoting: str | None = None
    wanted: Collection[str] | None = None
    use_images: bool = True
    use_regions: bool = True
    allow_missing: bool = False
    allow_outside: bool = False


def open_source(kind: str, request: SourceRequest) -> Source:
    """Open a source of one of the kinds in ``SOURCES``, or of a class given as ``module:Class``.

    Raises:
        PartError: no source has this name, or the class is no source.
        SourceError: the input does not exist, or an option does not apply to this kind.
    """
    source = SOURCES.find(kind)
    missing = [name for name in ("kind", "options", "rows") if not hasattr(source, name)]
    if missing:
        raise PartError(
            f"source {kind!r} has no {' and no '.join(missing)}; write the class as "
            "vse_shards.sources.Source describes"
        )
    unset = SourceRequest(request.input)
    given = {f.name for f in fields(request) if getattr(request, f.name) != getattr(unset, f.name)}
    for name, flag in _FLAGS.items():
        if name in given - source.options:
            raise SourceError(f"{flag} does not apply to --source {kind}; omit it")
    return source(request.input, **{name: getattr(request, name) for name in source.options})
