"""Samples of a tar: members that share a key, wherever they lie, in flat memory."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, BinaryIO, NamedTuple

from vse_shards.folders import LEFT, is_left
from vse_shards.notes import Notes
from vse_shards.opening import IMAGE_SUFFIXES
from vse_shards.sources.tars import Member, TarFault, TarReader

MAX_TEXT = 16 << 20  # bytes of a caption or description
TEXTS = ("txt", "json")
_MAX_HOPS = 8  # hard links from one to the next


class Part(NamedTuple):
    """One member of a sample.

    Attributes:
        key: path up to the first dot of the file's name.
        extension: the rest of the name, as written.
        last: extension behind the last dot, in lower case.
        counts: whether a source reads such members: images and texts.
        kind: as `Member` has it.
        offset: offset of its content in the tar, in bytes.
        size: size of its content in bytes.
        target: path that a link names.
        text: content of a small text member, else None.
    """

    key: str
    extension: str
    last: str
    counts: bool
    kind: str
    offset: int
    size: int
    target: str
    text: bytes | None


@dataclass
class Listing:
    """Outcome of the one pass over a tar.

    Attributes:
        keys: number of keys.
        images: number of keys with an image.
        fault: reason that the rest of the tar cannot be read; "" if it was read whole.
    """

    keys: int = 0
    images: int = 0
    fault: str = ""


class TarSamples:
    """Samples of one tar.

    The tar is read once. Its members are described in a second file, which is read again by key:
    memory holds a number a key, and the places of the members of those keys that lie apart.

    Args:
        file: the tar, open for reading.
        spill: an empty file to describe the members in.
        name: name of the tar, for the notes.
        notes: told of passed-over and joined members.
    """

    def __init__(self, file: BinaryIO, spill: IO[bytes], name: str, notes: Notes) -> None:
        self._file, self._spill, self._name, self._notes = file, spill, name, notes
        self._apart: set[int] = set()  # hashes of keys whose members do not lie side by side
        self._targets: dict[str, Part | None] = {}
        self._places: dict[int, array[int]] = {}
        self.listing = Listing()
        self._list()
        if self._apart or self._targets:
            self._look_up()

    def __iter__(self) -> Iterator[tuple[str, list[Part]]]:
        """Yield every key with its members, in the order of the keys' first members."""
        self._spill.seek(0)
        done: set[str] = set()
        parts: list[Part] = []
        for _, part in self._parts():
            if parts and part.key != parts[0].key:
                yield from self._sample(parts, done)
                parts = []
            parts.append(part)
        if parts:
            yield from self._sample(parts, done)

    def text(self, part: Part) -> bytes:
        """Return the content of a text member."""
        if part.text is None:
            self._file.seek(part.offset)
            return self._file.read(part.size)
        return part.text

    def _list(self) -> None:
        """Read the tar, and describe its members in the temporary file."""
        reader = TarReader(self._file)
        seen: set[int] = set()
        last, pictured = "", False
        try:
            for member in reader:
                part = self._part(member)
                if part is None:
                    continue
                if part.key != last:
                    last, pictured, number = part.key, False, hash(part.key)
                    (self._apart if number in seen else seen).add(number)
                if not pictured and f".{part.last}" in IMAGE_SUFFIXES:
                    pictured = True
                    self.listing.images += 1
                record = marshal.dumps(tuple(part))
                self._spill.write(len(record).to_bytes(4, "little") + record)
        except (OSError, TarFault) as error:
            self.listing.fault = str(error)
        self.listing.keys = len(seen)
        if reader.joined > 1:
            self._notes.say(
                f"{self._name}: is {reader.joined:,} tars, one after the other; all are read"
            )
        if not reader.ended and not self.listing.fault:
            self.listing.fault = "it has no end mark, as if it was not written to its end"

    def _part(self, member: Member) -> Part | None:
        """Return a member as part of a sample; None if it is none."""
        if member.kind == "other":
            return None
        folder, slash, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if is_left(member.name):
            self._notes.pass_over(LEFT, member.name)
            return None
        if not stem or not dot:
            self._notes.pass_over("members whose names have no key and extension", member.name)
            return None
        if member.kind == "link":
            self._targets[_plain(member.target)] = None
        last = extension.rpartition(".")[2].lower()
        text = None
        if member.kind == "file" and last in TEXTS and member.size <= MAX_TEXT:
            self._file.seek(member.offset)
            text = self._file.read(member.size)
        counts = last in TEXTS or f".{last}" in IMAGE_SUFFIXES
        key, place = folder + slash + stem, (member.kind, member.offset, member.size)
        return Part(key, extension, last, counts, *place, member.target, text)

    def _look_up(self) -> None:
        """Find the members of keys that lie apart, and those that links name."""
        self._spill.seek(0)
        for place, part in self._parts():
            if (number := hash(part.key)) in self._apart:
                self._places.setdefault(number, array("q")).append(place)
            name = _plain(f"{part.key}.{part.extension}")
            if name in self._targets:
                self._targets[name] = part

    def _parts(self) -> Iterator[tuple[int, Part]]:
        place = self._spill.tell()
        while (part := self._record()) is not None:
            yield place, part
            place = self._spill.tell()

    def _record(self) -> Part | None:
        size = int.from_bytes(self._spill.read(4), "little")
        return Part(*marshal.loads(self._spill.read(size))) if size else None

    def _sample(self, parts: list[Part], done: set[str]) -> Iterator[tuple[str, list[Part]]]:
        key = parts[0].key
        if (number := hash(key)) in self._apart:
            if key in done:
                return
            done.add(key)
            back = self._spill.tell()
            parts = []
            for place in self._places[number]:
                self._spill.seek(place)
                part = self._record()
                if part is not None and part.key == key:
                    parts.append(part)
            self._spill.seek(back)
        yield key, [self._followed(part) for part in parts]

    def _followed(self, part: Part) -> Part:
        """Return a hard link with the content of the member that it names."""
        if part.kind != "link":
            return part
        found: Part | None = part
        for _ in range(_MAX_HOPS):
            if found is None or found.kind != "link":
                break
            found = self._targets.get(_plain(found.target))
        if found is None or found.kind == "link":
            return part
        return part._replace(kind=found.kind, offset=found.offset, size=found.size, text=found.text)


def _plain(name: str) -> str:
    return name.removeprefix("./")
