"""Sources by their ``--source`` name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from vse_shards.errors import SourceError
from vse_shards.sources.base import Source
from vse_shards.sources.coco import CocoSource
from vse_shards.sources.folder import FolderSource
from vse_shards.sources.jsonl import JsonlSource
from vse_shards.sources.karpathy import KarpathySource
from vse_shards.sources.precomp import PrecompSource
from vse_shards.sources.table import CsvSource, ParquetSource
from vse_shards.sources.webdataset import WebDatasetSource


@dataclass(frozen=True)
class SourceRequest:
    """Options that select and describe a source.

    Attributes:
        input: path or URL.
        images: folder of the images, if given.
        columns: names of columns or keys in the file, by their standard names.
        wanted: splits that the build selects; None selects all.
        use_images: False omits images that have region features.
        use_regions: False omits region features.
    """

    input: str
    images: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    wanted: Collection[str] | None = None
    use_images: bool = True
    use_regions: bool = True


def open_source(kind: str, request: SourceRequest) -> Source:
    """Open a source of one of the kinds in ``SOURCES``.

    Raises:
        SourceError: the input does not exist, or an option does not apply to this kind.
    """
    refused = {
        "--images": request.images is not None and kind in ("folder", "webdataset"),
        "--column": bool(request.columns) and kind not in ("jsonl", "csv", "parquet"),
        "--no-images": not request.use_images and kind != "precomp",
        "--no-regions": not request.use_regions and kind != "precomp",
    }
    for option, given in refused.items():
        if given:
            raise SourceError(f"{option} does not apply to --source {kind}; omit it")
    return SOURCES[kind](request)


SOURCES: dict[str, Callable[[SourceRequest], Source]] = {
    "jsonl": lambda r: JsonlSource(r.input, r.images, r.columns),
    "csv": lambda r: CsvSource(r.input, r.images, r.columns),
    "parquet": lambda r: ParquetSource(r.input, r.images, r.columns),
    "folder": lambda r: FolderSource(r.input),
    "karpathy": lambda r: KarpathySource(r.input, r.images),
    "coco": lambda r: CocoSource(r.input, r.images),
    "precomp": lambda r: PrecompSource(
        r.input, r.images, r.wanted, use_images=r.use_images, use_regions=r.use_regions
    ),
    "webdataset": lambda r: WebDatasetSource(r.input),
}
