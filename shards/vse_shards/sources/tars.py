"""Members of a tar, read once as a stream, within limits that no header can widen."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from vse_shards.notes import shown

_BLOCK = 512
_MAX_EXTENSION = 1 << 20  # bytes of a long name or a pax header; paths end at 4,096
_MAX_CHAIN = 16  # extension headers before one member: GNU tar and pax write up to 4
_REGULAR = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_PAX = {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}
_GNU_LONG = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}


class TarFault(Exception):
    """A tar that cannot be read from some byte on; the message says where and why."""


@dataclass(frozen=True)
class Member:
    """One member of a tar.

    Attributes:
        name: path in the tar; bytes that are not UTF-8 are surrogates.
        kind: ``file``, ``link`` (hard), ``symlink``, ``sparse`` or ``other``.
        offset: offset of its content in the tar, in bytes.
        size: size of its content in bytes.
        target: path that a link names.
    """

    name: str
    kind: str
    offset: int
    size: int
    target: str = ""


class _Header(NamedTuple):
    """Fields of one header block; ``map_goes_on`` is of the old sparse format."""

    name: str
    type: bytes
    size: int
    linkname: str
    map_goes_on: bool


class TarReader:
    """Members of a tar in their order, through the end marks of tars that were joined by ``cat``.

    ``tarfile`` stops in silence at a header that is damaged and at the first end mark, keeps all
    headers, and reads as much as a header demands.

    Args:
        file: the tar, open for reading; it must be seekable.

    Attributes:
        joined: number of tars that were found one after the other.
        ended: whether the last of them had an end mark.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = file.seek(0, 2)
        self._at = 0
        self._behind_mark = False
        self.joined = 1
        self.ended = False

    def __iter__(self) -> Iterator[Member]:
        """Yield every member.

        Raises:
            TarFault: the rest cannot be read.
            OSError: the file cannot be read.
        """
        if not self._end:
            raise TarFault("it is empty")
        while (block := self._next()) is not None:
            yield self._member(block)

    def _next(self) -> bytes | None:
        """Return the next header block, behind end marks if more follows them; None at the end."""
        self._file.seek(self._at)
        block = self._file.read(_BLOCK)
        self._behind_mark = self.ended = bool(block) and not block.strip(b"\0")
        if not self.ended:
            return block or None
        # Padding and, of joined tars, the next one. Zeros are skipped a megabyte at a time.
        while block:
            if rest := block.lstrip(b"\0"):
                self._at += (len(block) - len(rest)) // _BLOCK * _BLOCK
                self._file.seek(self._at)
                return self._file.read(_BLOCK)
            self._at += len(block)
            block = self._file.read(1 << 20)
        # A file that was cut within an end mark may have lost a tar that was joined behind it.
        self.ended = self._end % _BLOCK == 0
        return None

    def _header(self, block: bytes) -> _Header:
        try:
            header = _parsed(block)
        except tarfile.HeaderError as error:
            if self._behind_mark:
                text = f"what follows its end mark, from byte {self._at:,}, is no tar"
                raise TarFault(text) from None
            raise TarFault(f"the header at byte {self._at:,} is damaged: {error}") from None
        self.joined += self._behind_mark
        self._behind_mark = False
        return header

    def _member(self, block: bytes) -> Member:
        """Return the member whose headers begin with a block, and go behind it."""
        long: dict[str, str] = {}
        for _ in range(_MAX_CHAIN):
            header = self._header(block)
            self._at += _BLOCK
            if header.type not in _GNU_LONG | _PAX | {tarfile.XGLTYPE}:
                return self._ends(header, long)
            size = self._checked(header.size, header.name)
            if header.type != tarfile.XGLTYPE:
                if size > _MAX_EXTENSION:
                    raise TarFault(f"a header before byte {self._at:,} has {size:,} bytes")
                self._file.seek(self._at)
                content = self._file.read(size)
                if header.type in _PAX:
                    long |= _pax(content, self._at)
                else:
                    field = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                    long[field] = _text(content.split(b"\0")[0])
            self._at += _padded(size)
            self._file.seek(self._at)
            block = self._file.read(_BLOCK)
        raise TarFault(f"more than {_MAX_CHAIN} headers in a row before byte {self._at:,}")

    def _ends(self, header: _Header, long: dict[str, str]) -> Member:
        name = long.get("path", header.name)
        target = long.get("linkpath", header.linkname)
        size = header.size
        if "size" in long:
            if not long["size"].isdecimal() or len(long["size"]) > 20:
                raise TarFault(f"{shown(name)}: its size is {shown(long['size'])}")
            size = int(long["size"])
        kind = "other"
        if header.type in _REGULAR:
            sparse = any(key.startswith("GNU.sparse.") for key in long)
            kind = "sparse" if sparse else "file"
            name = long.get("GNU.sparse.name", name)
        elif header.type == tarfile.GNUTYPE_SPARSE:
            kind = "sparse"
            self._skip_sparse_map(more=header.map_goes_on)
        elif header.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            kind = "link" if header.type == tarfile.LNKTYPE else "symlink"
        # As tarfile has it: links, folders and devices have no content, whatever their size says.
        if kind in ("link", "symlink") or (
            kind == "other" and header.type in tarfile.SUPPORTED_TYPES
        ):
            size = 0
        offset, size = self._at, self._checked(size, name)
        self._at += _padded(size)
        return Member(name, kind, offset, size, target)

    def _checked(self, size: int, name: str) -> int:
        if size < 0:
            raise TarFault(f"{shown(name)}: its size is negative")
        if self._at + size > self._end:
            raise TarFault(
                f"it ends within {shown(name)}, of {size:,} bytes from byte {self._at:,}: it has "
                f"{self._end:,}"
            )
        return size

    def _skip_sparse_map(self, *, more: bool) -> None:
        while more:
            self._file.seek(self._at)
            block = self._file.read(_BLOCK)
            self._at += _BLOCK
            more = len(block) == _BLOCK and bool(block[504])


def _parsed(block: bytes) -> _Header:
    """Return a header, by five of its fields: tarfile reads sixteen, in four times the time.

    Raises:
        tarfile.HeaderError: it is none, or damaged.
    """
    written = block[148:156]
    # 256 is the sum of the eight spaces that stand for the checksum itself.
    if len(block) != _BLOCK or _number(written) != 256 + sum(block) - sum(written):
        # Sums of signed bytes are tarfile's affair, and the words for what is wrong.
        known = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        return _Header(known.name, known.type, known.size, known.linkname, block[482] != 0)
    name, kind = _text(block[:100].partition(b"\0")[0]), block[156:157]
    if kind == tarfile.AREGTYPE and name.endswith("/"):
        kind = tarfile.DIRTYPE
    prefix = _text(block[345:500].partition(b"\0")[0])
    if prefix and kind not in tarfile.GNU_TYPES:
        name = f"{prefix}/{name}"
    target = _text(block[157:257].partition(b"\0")[0])
    return _Header(name, kind, _number(block[124:136]), target, block[482] != 0)


def _number(field: bytes) -> int:
    """Return a number of a header: octal digits, or base 256 behind a byte of 0x80 or 0xff."""
    if field[0] in (0x80, 0xFF):
        below = 256 ** (len(field) - 1) if field[0] == 0xFF else 0
        return int.from_bytes(field[1:], "big") - below
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise tarfile.HeaderError("invalid header") from None


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _pax(content: bytes, at: int) -> dict[str, str]:
    """Return the records ``LENGTH KEY=VALUE`` of a pax header."""
    found: dict[str, str] = {}
    while content.strip(b"\0"):
        digits, space, _ = content[:24].partition(b" ")
        size = int(digits) if digits.isdigit() else 0
        key, equals, value = content[len(digits) + 1 : size].partition(b"=")
        if not (space and equals and len(digits) < size <= len(content)):
            raise TarFault(f"the pax header at byte {at:,} is damaged")
        found[_text(key)] = _text(value.removesuffix(b"\n"))
        content = content[size:]
    return found
