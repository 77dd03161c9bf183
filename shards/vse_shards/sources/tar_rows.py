"""Rows of the samples of one tar: its images with the captions beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.json_text import parse_json
from vse_shards.notes import Notes, shown
from vse_shards.opening import IMAGE_SUFFIXES
from vse_shards.sources.base import (
    Location,
    Problem,
    Row,
    decode_line,
    is_id,
    is_unicode,
    usable_captions,
)
from vse_shards.sources.samples import MAX_TEXT, TEXTS, Part, TarSamples
from vse_shards.sources.tabular.cells import BadCell
from vse_shards.sources.tabular.keys import CaptionKeys, as_list
from vse_shards.sources.tabular.parquet import import_parquet

# Extensions of two words are the sample's own, as webdataset has them; numbers are of the key.
_IMAGE_WORDS, _TEXT_WORDS = {"image", "img", "photo"}, {"caption", "captions", "text", "prompt"}
_MAX_NAME = 4096  # bytes of a path on Linux


class CaptionsBeside:
    """Captions by key from img2dataset's Parquet file, read on first use.

    Args:
        stem: path of the tar without its suffix.
    """

    def __init__(self, stem: str) -> None:
        self._path = f"{stem}.parquet"
        self._captions: dict[str, Any] | None = None

    def caption(self, key: str) -> Any:
        """Return the caption of a key, None if there is none."""
        if self._captions is None:
            self._captions = self._read() if storage.is_file(self._path) else {}
        return self._captions.get(key)

    def _read(self) -> dict[str, Any]:
        parquet = import_parquet(self._path)
        try:
            with storage.open_binary(self._path) as file:
                table = parquet.ParquetFile(file).read(columns=["key", "caption"]).to_pydict()
        except (OSError, ValueError) as error:
            raise SourceError(f"{self._path}: cannot be read as Parquet: {error}") from error
        return dict(zip(table.get("key", []), table.get("caption", []), strict=True))


@dataclass(frozen=True)
class Tar:
    """One tar while its samples become rows.

    Attributes:
        path: file that its members lie in.
        name: name of the tar, for messages.
        stem: the same without suffix, for ids.
        samples: its samples.
        table: captions beside it.
        keys: keys of the captions in ``.json`` members.
        notes: told what was assumed.
    """

    path: str
    name: str
    stem: str
    samples: TarSamples
    table: CaptionsBeside
    keys: CaptionKeys
    notes: Notes


def by_stem(key: str, parts: list[Part], tar: Tar) -> Iterator[tuple[str, list[Part]]]:
    """Divide a key's members at the last dot if none belongs to the key by the first."""
    counted = [part for part in parts if part.counts]
    plain = [part for part in counted if "." not in part.extension]
    dotted: dict[str, list[Part]] = {}
    for part in counted:
        if "." in part.extension:
            stem = f"{key}.{part.extension.rpartition('.')[0]}"
            dotted.setdefault(stem, []).append(part)
    if plain or not dotted or _is_one_sample(counted):
        pairs = (stem for stem, own in dotted.items() if len(own) > 1 and _has_text(own))
        unread = next(pairs, None)
        if unread is not None:
            tar.notes.say(
                f"{shown(tar.name)}: members of names such as {shown(unread)} belong to key "
                f"{shown(key)}, as webdataset has it, and are not read; name them without the dot",
                kind="unread",
            )
        yield key, [*plain, *(part for part in parts if not part.counts)] if plain else parts
        return
    stem = next(iter(dotted))
    tar.notes.say(
        f"names are divided at their last dot where the first gives no sample: {shown(stem)} is "
        f"a key in {shown(tar.name)}",
        kind="last dot",
    )
    yield from dotted.items()


def _is_one_sample(parts: list[Part]) -> bool:
    """Return whether two members are ``KEY.image.jpg`` and ``KEY.caption.txt``."""
    words = [part.extension.rpartition(".")[0].lower() for part in parts]
    images = [f".{part.last}" in IMAGE_SUFFIXES for part in parts]
    return sorted(images) == [False, True] and all(
        word in (_IMAGE_WORDS if image else _TEXT_WORDS)
        for word, image in zip(words, images, strict=True)
    )


def _has_text(parts: list[Part]) -> bool:
    return any(part.last in TEXTS for part in parts)


# One check after the other, each with its own reject.
def row_of(tar: Tar, key: str, parts: list[Part], split: str) -> Iterator[Row | Problem]:
    """Yield the row of a sample, after the problems with it."""
    origin = f"{tar.name}: {key}"
    if not is_unicode(origin) or len(origin) > _MAX_NAME:
        fault = "its name is not UTF-8" if len(origin) <= _MAX_NAME else "its name is too long"
        yield Problem(shown(origin), None, split, "malformed row", fault)
        return
    image_id: Any = f"{tar.stem}/{key}"

    def problem(reason: str, detail: str) -> Problem:
        return Problem(origin, image_id, split, reason, detail)

    by_kind: dict[str, list[Part]] = {}
    for part in parts:
        if part.counts:
            by_kind.setdefault(part.last, []).append(part)
    twice = next((kind for kind, same in by_kind.items() if len(same) > 1), None)
    if twice is not None:
        detail = f"its .{twice} is in the tar {len(by_kind[twice])} times"
        yield problem("duplicate member", detail)
        return
    images = [same[0] for kind, same in by_kind.items() if f".{kind}" in IMAGE_SUFFIXES]
    texts = {kind: by_kind[kind][0] for kind in TEXTS if kind in by_kind}
    if not images:
        held = dict.fromkeys(f".{kind}" for kind in texts)
        yield problem("caption for no image", f"it has {', '.join(held) or 'nothing'} alone")
        return
    if len(images) > 1:
        tar.notes.say(
            f"{shown(tar.name)}: {shown(key)} has several images, "
            f"{' and '.join(f'.{part.last}' for part in images[:3])}; the first is taken",
            kind="several images",
        )
    for part in (images[0], *texts.values()):
        if fault := _fault(part):
            yield problem("unreadable", f"its .{part.last} {fault}")
            return
    try:
        json_text = tar.samples.text(texts["json"]) if "json" in texts else b"{}"
        description = parse_json(json_text, surrogates=True)
    except ValueError as error:
        yield problem("malformed row", f".json: {error}")
        return
    if not isinstance(description, dict):
        description = {}
    if is_id(description.get("image_id")):
        image_id = description["image_id"]
    text = tar.samples.text(texts["txt"]) if "txt" in texts else None
    try:
        found = _captions(text, description, tar, key)
    except BadCell as error:
        yield problem("malformed row", f".json: {error}")
        return
    others = [f".{part.extension}" for part in parts if not part.counts]
    if not found and not texts:
        but = (
            f", but {shown(', '.join(others[:4]))}" if others else f", but .{images[0].last} alone"
        )
        yield problem("no caption", f"it has no .txt or .json{but}")
        return
    captions, problems = usable_captions(found, None, origin=origin, key=image_id, split=split)
    yield from problems
    if captions:
        location = Location(tar.path, images[0].offset, images[0].size)
        yield Row(split, image_id, captions, location, origin, origin)


def _fault(part: Part) -> str:
    """Return why a member has no content to read, "" if it has."""
    if part.kind in ("link", "symlink"):
        return (
            f"is a link to {shown(part.target)}, which is no file of the tar: pack the file itself "
            "with tar --dereference"
        )
    if part.kind == "sparse":
        return "is a sparse file: pack it without tar --sparse"
    if part.last in TEXTS and part.size > MAX_TEXT:
        return f"has {part.size:,} bytes, limit {MAX_TEXT:,}"
    return ""


def _captions(text: bytes | None, description: dict[str, Any], tar: Tar, key: str) -> list[Any]:
    if tar.keys.chosen:
        return tar.keys.captions(description)
    if isinstance(description.get("captions"), list):
        return list(description["captions"])
    if text is not None:
        whole = decode_line(text)
        # img2dataset repeats the text in the description, so its line ends belong to one caption.
        if whole is not None and description.get("caption") in (whole, text.decode("utf-8-sig")):
            return [whole]
        lines = [decode_line(line) for line in text.split(b"\n") if line.strip()]
        if len(lines) > 1:
            tar.notes.say("a .txt of several lines holds several captions, one a line")
        return lines or [whole]
    values = (description.get(name) for name in ("caption", "text"))
    named = next((value for value in values if value is not None), None)
    found = tar.table.caption(key) if named is None else named
    return tar.keys.captions(description) if found is None else as_list(found)
