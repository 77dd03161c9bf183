"""Checks of a source and an output folder before anything is written."""

from __future__ import annotations

import json
import os

from vse_shards import storage
from vse_shards.carve import SPLIT_NAME
from vse_shards.errors import OutputError, SourceError
from vse_shards.notes import shown
from vse_shards.options import BuildOptions
from vse_shards.rows import RowStore
from vse_shards.sources import Source
from vse_shards.sources.base import INCOMPLETE
from vse_shards.threshold import Rejects


def refuse_nested(source: str, out: str) -> None:
    """Refuse an output below the input, or an input below the output.

    The next build would read the shards of this one, or count the input among its files.

    Args:
        source: file, folder or URL to read.
        out: folder or URL to write.

    Raises:
        OutputError: one lies in the other.
    """
    read, written = _whole_path(source), _whole_path(out)
    if written == read or written.startswith(f"{read}/"):
        raise OutputError(
            f"{out}: lies in the input {source}, and the next build would read its shards; choose "
            "a folder outside of it for --out"
        )
    if read.startswith(f"{written}/"):
        raise OutputError(
            f"{out}: the input {source} lies in this output folder; choose another folder for --out"
        )


def _whole_path(path: str) -> str:
    return path.rstrip("/") if storage.is_url(path) else os.path.realpath(path)


def check_rows(
    source: Source, store: RowStore, other_splits: dict[str, int], options: BuildOptions
) -> None:
    """Refuse rows that yield no dataset.

    Args:
        source: source of the rows.
        store: its rows.
        other_splits: number of rows of each split that is not selected.
        options: options of the build.

    Raises:
        SourceError: images are missing, there are no rows, a split is absent or has no usable
            name, too many rows were rejected, or an id is in two splits.
    """
    splits = store.splits()
    if not options.allow_missing:
        _check_missing(source, store, sum(splits.values()))
    if not splits:
        raise _no_rows(source, store, other_splits)
    _check_names(source, splits, other_splits, options)
    rejects = Rejects()
    rejects.add(store.problems())
    if not options.allow_missing:
        _check_whole(source, rejects)
    rejects.check(source.name, options.max_rejects, store.read, options.accepted())
    leaks = "" if options.allow_leaks else store.leaks()
    if leaks:
        raise SourceError(f"{source.name}: {leaks}")


def _check_missing(source: Source, store: RowStore, images: int) -> None:
    missing = store.missing()
    if missing.count:
        raise SourceError(
            f"{source.name}: {missing.count:,} of {missing.count + images:,} images are missing: "
            f"{', '.join(map(shown, missing.first))}{' ...' if missing.count > 3 else ''}; correct "
            "--images, or reject them with --allow-missing"
        )


def _check_whole(source: Source, rejects: Rejects) -> None:
    """Refuse a part of the input behind whose damage any number of rows may be lost."""
    first = rejects.first(INCOMPLETE)
    if first:
        more = ", ..." if rejects.reasons[INCOMPLETE] > len(first) else ""
        raise SourceError(
            f"{source.name}: {rejects.reasons[INCOMPLETE]:,} of its tars cannot be read to the "
            f"end: {', '.join(first)}{more}; get them again, or build what there is with "
            "--allow-missing"
        )


def _no_rows(source: Source, store: RowStore, other_splits: dict[str, int]) -> SourceError:
    problem = next(iter(store.problems()), None)
    if problem is not None:
        first = json.loads(problem)
        return SourceError(
            f"{source.name}: none of its rows can be used; the first: {shown(first['source'])}: "
            f"{first['reason']}: {first['detail']}"
            f"{f'; {store.outside.remedy()}' if store.outside.count else ''}"
        )
    other = ", ".join(other_splits)
    return SourceError(
        f"{source.name}: has no rows of the requested splits; it has {other}"
        if other
        else f"{source.name}: is empty; there is nothing to build"
    )


def _check_names(
    source: Source, splits: dict[str, int], other_splits: dict[str, int], options: BuildOptions
) -> None:
    for name in splits:
        if not SPLIT_NAME.fullmatch(name):
            raise SourceError(
                f"{source.name}: split {shown(repr(name))} cannot be part of a file name; rename "
                "it with --split NAME=SPLIT"
            )
    if options.splits is not None:
        absent = sorted(set(options.splits.values()) - set(splits))
        if absent:
            raise SourceError(
                f"{source.name}: has no rows for split {absent[0]!r}; it has other rows of "
                f"{', '.join(other_splits) or 'no other split'}"
            )
