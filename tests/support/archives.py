"""Tars, zips and images of given contents, in memory, and files written from them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

Members = Iterable[tuple[str, bytes] | tarfile.TarInfo]


def tar_of(members: Mapping[str, bytes] | Members, **options: Any) -> bytes:
    """Return a tar of contents by name, or of headers alone, such as those of links."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:
        for member in members.items() if isinstance(members, Mapping) else members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    """Return the header of a hard link, or of one of another kind."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_of(files: Mapping[str, bytes | str] | Iterable[tuple[str, bytes]]) -> bytes:
    """Return a zip of contents by name, or of pairs of name and content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            archive.writestr(name, data)
    return file.getvalue()


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """Return an image as a file of a kind that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder, which is returned."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder
