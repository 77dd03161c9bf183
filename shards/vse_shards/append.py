"""Adding rows to a dataset: its shards stay as they are, and new ones hold the new rows.

The manifest's ``source.appended`` lists every addition in order: kind, rows and digest of its
source, and of the dataset before it the ``fingerprint`` and ``shards``, the number of shards of
each split. The first so many shards of a split are those of that dataset, byte for byte and in its
order, so a run on any dataset of the list may tell that this one begins with it. Datasets that grew
before these keys were recorded lack both.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from vse_shards import storage
from vse_shards.build import opened_store, plan, read_source, recorded_source
from vse_shards.carve import Carving
from vse_shards.contents import Contents, Stored
from vse_shards.errors import DatasetError, OutputError, SourceError
from vse_shards.identity import prefix_of
from vse_shards.images import ImageOptions, Rejected, check_image
from vse_shards.index import read_index
from vse_shards.manifest import FILE_NAME, Manifest
from vse_shards.notes import counted, shown
from vse_shards.options import BuildOptions, Summary
from vse_shards.output import PLAN_NAME, OutputFolder
from vse_shards.progress import Progress, say
from vse_shards.regions import read_regions
from vse_shards.rows import RowStore
from vse_shards.seal import seal
from vse_shards.shard import read_image
from vse_shards.sources import Problem, Row, Source

OTHER_CAPTIONS = "captions of a stored image"  # reason of a row that finished shards cannot take


def append(source: Source, out: str, options: BuildOptions) -> Summary:
    """Add the rows of a source to a dataset, or resume that.

    Rows that the dataset has are passed over. Until the new manifest is written, the dataset is
    the one that it was; after a kill, the same call goes on.

    Args:
        source: rows to read; those of the dataset may be among them.
        out: folder of the dataset.
        options: options of the build, from `options_of` the dataset.

    Raises:
        DatasetError: there is no such dataset, or it is damaged.
        SourceError: the source is unusable as a whole, or an id of the dataset has another picture.
        OutputError: the folder cannot be written.
        OSError: a storage does not answer.
    """
    if storage.is_url(out):
        raise OutputError(
            f"{out}: append works on a folder of this machine; copy the dataset here, append, and "
            "copy it back"
        )
    manifest = Manifest.load(out)  # before the folder is opened, which would create it
    manifest.check(Path(out))
    folder = OutputFolder(out)
    with opened_store(folder) as (store, store_path), folder.scratch("ids") as ids_path:
        contents = Contents(ids_path)
        try:
            contents.add(Path(folder.path), manifest)
            notes = read_source(source, store, options, settled=contents.split)
            read = sum(store.splits().values())
            passed = _pass_over_stored(store, contents, options)
            _check_caption_ids(store, contents)
        finally:
            contents.close()
        line = f"{passed:,} of {counted(read, 'image')} of {source.name} are in the dataset already"
        say(line)
        shards = {split: len(content.shards) for split, content in manifest.splits.items()}
        addition = {
            **recorded_source(source, store),
            "fingerprint": manifest.fingerprint,
            "shards": shards,
        }
        appended = [*manifest.source.get("appended", []), addition]
        recorded = {
            "build": dict(manifest.build),
            "source": {**manifest.source, "appended": appended},
        }
        after = {name: _after(folder, manifest, name) for name in manifest.splits}
        folder.write(PLAN_NAME, json.dumps(recorded, sort_keys=True).encode())
        tasks = list(plan(store, folder, store_path, options, after))
        summary = seal(folder, source.name, store, tasks, recorded, options, manifest)
    return replace(summary, notes=(*notes, line))


def options_of(folder: str, given: BuildOptions) -> BuildOptions:
    """Return options that add to a dataset as it was built.

    Args:
        folder: folder of the dataset.
        given: options of the command; those that determine the files are the dataset's instead,
            ``splits`` if none are given.

    Raises:
        DatasetError: there is no such dataset, or it does not tell how it was built.
    """
    build = Manifest.load(folder).build
    needed = ("max_side", "quality", "keep_bytes", "shard_samples", "seed", "splits")
    if absent := [key for key in needed if key not in build]:
        raise DatasetError(
            f"{folder}/{FILE_NAME}: malformed: build has no {', '.join(absent)}; build the dataset "
            "again"
        )
    return replace(
        given,
        image=ImageOptions.of(build),
        shard_samples=build["shard_samples"],
        seed=build["seed"],
        splits=build["splits"] if given.splits is None else given.splits,
        carvings=tuple(Carving(name, percent) for name, percent in build.get("carve", [])),
        prefix_ids=given.prefix_ids or build.get("prefix_ids", False),
    )


def _pass_over_stored(store: RowStore, contents: Contents, options: BuildOptions) -> int:
    """Remove the rows that the dataset has, and return their number."""
    passed = 0
    numbers = store.all_numbers()
    with Progress("comparing with the dataset", len(numbers), "images") as progress:
        for done, number in enumerate(numbers, start=1):
            (stored_row,) = store.fetch([number])
            row = stored_row.row
            found = contents.find(row.image_id)
            same = [one for one in found if one.split == row.split]
            if found and not same and not options.allow_leaks:
                raise SourceError(
                    f"{shown(row.origin)}: image_id {shown(str(row.image_id))} of split "
                    f"{row.split} is in split {found[0].split} of the dataset; correct the source, "
                    "or pass --allow-leaks"
                )
            if same:
                problem = _compare(row, same[0], options.image)
                store.drop(number, problem)
                passed += problem is None
            progress.update(done)
    return passed


def _compare(row: Row, stored: Stored, options: ImageOptions) -> Problem | None:
    """Compare a row with the sample of its id; return what cannot be added, None if nothing.

    Raises:
        SourceError: they are different pictures.
    """
    try:
        if not _same_picture(row, stored, options):
            raise SourceError(
                f"{shown(row.origin)}: image_id {shown(str(row.image_id))} is the picture "
                f"{shown(row.name)} here and another in the dataset ({stored.place()}); correct "
                f"the ids, or keep both with --prefix-ids, as {shown(prefix_of(row))}/..."
            )
    except Rejected as refusal:
        return Problem(row.name, row.image_id, row.split, refusal.reason, refusal.detail)
    known = {caption["text"] for caption in stored.description["captions"]}
    new = [caption.text for caption in row.captions if caption.text not in known]
    if not new:
        return None
    detail = f"{counted(len(new), 'caption')} more than {stored.place()}: {shown(new[0])!r}"
    return Problem(row.origin, row.image_id, row.split, OTHER_CAPTIONS, detail)


def _same_picture(row: Row, stored: Stored, options: ImageOptions) -> bool:
    if row.image is None:
        return row.regions is not None and read_regions(row.regions) == stored.member("npy")
    data = read_image(row.image)
    if data == stored.member("jpg"):
        return True
    # Compared by pixels where it was encoded anew: another Pillow may write other bytes.
    return check_image(data, options).digest == stored.digest


def _check_caption_ids(store: RowStore, contents: Contents) -> None:
    for number in store.all_numbers():
        (stored_row,) = store.fetch([number])
        contents.note_new(number, stored_row.row.captions)
    clash = contents.caption_id_clash()
    if clash is not None:
        places = [
            one.place() if isinstance(one, Stored) else store.fetch([one])[0].row.origin
            for one in clash[1]
        ]
        raise SourceError(
            f"caption id {shown(str(clash[0]))} stands twice: in {places[0]} and in {places[1]}; "
            "correct the ids, or keep both with --prefix-ids"
        )


def _after(folder: OutputFolder, manifest: Manifest, split: str) -> tuple[int, int]:
    """Return the number of a split's next shard, and the key of its first sample.

    Raises:
        DatasetError: its shards are not called as a build calls them, or it has none.
    """
    shards = manifest.splits[split].shards
    parts = [manifest.source, *manifest.source.get("appended", [])]
    rows = sum(part.get("rows", {}).get(split, 0) for part in parts)
    # A merged dataset has no rows of a source; its keys may repeat, but new ones need not.
    try:
        last = (
            0
            if rows
            else max(
                int(read_index(Path(folder.path) / shard.index_name).keys[-1]) + 1
                for shard in shards
            )
        )
        number = max(int(shard.name.removesuffix(".tar").rpartition("-")[2]) for shard in shards)
    except (ValueError, IndexError):
        raise DatasetError(
            f"{folder.path}/{FILE_NAME}: malformed: split {shown(split)} has a shard without "
            "samples, or one that is not called NAME-NUMBER.tar; build the dataset again"
        ) from None
    return number + 1, max(rows, last)
