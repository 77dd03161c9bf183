"""Replacing a dataset: the new one is built beside it, and takes its name when it is complete."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vse_shards.card import CARD_NAME, is_own, staying
from vse_shards.claim import refuse_foreign
from vse_shards.errors import OutputError
from vse_shards.manifest import FILE_NAME, Manifest
from vse_shards.output import TEMPORARY, OutputFolder
from vse_shards.progress import say
from vse_shards.storage import is_url
from vse_shards.system import exchange, sync_folder

_NEW, _OLD = ".vse-new", ".vse-old"
_NEVER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)  # no folder may be made
_REPLACED = f".replaced{TEMPORARY}"  # in a dataset that another takes the place of


def aside_of(out: str) -> Path:
    """Return the folder in which a dataset is built that replaces another."""
    return _beside(Path(os.path.realpath(out)), _NEW)


def make_aside(out: str) -> Path | None:
    """Create the folder of `aside_of`; return None where a folder cannot take another's name.

    That is the case in an object storage, at a mount point, where no folder may be made beside it,
    and around the current folder, which would be gone from under its shell.

    Raises:
        OutputError: it cannot be created now, such as on a full disk.
    """
    place, current = Path(os.path.realpath(out)), Path.cwd()
    if is_url(out) or os.path.ismount(place) or place in (current, *current.parents):
        return None
    aside = aside_of(out)
    try:
        aside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _NEVER:
            return None
        raise OutputError(
            f"{aside}: the new dataset is built there before it replaces {out}, and that folder "
            f"cannot be made: {error.strerror or error}; mend that, and run the same command again"
        ) from error
    return aside


@contextmanager
def replacing(out: str, aside: Path) -> Iterator[None]:
    """Let a dataset that the block builds take the place of another.

    After a kill there is a whole dataset in the folder, the old or the new, where the system can
    exchange folders; elsewhere it may be beside it for a moment, and the same command puts it back.

    Args:
        out: folder of the dataset to replace; it may be empty, or missing.
        aside: folder that the block builds in; what an earlier block left there is kept.

    Raises:
        OutputError: the folder contains something else, or another build is running in it.
    """
    place = Path(os.path.realpath(out))
    former = _beside(place, _OLD)
    folder = OutputFolder(str(place))
    put_back(out)
    try:
        with folder.opened():
            refuse_foreign(folder)
            if (aside / _REPLACED).exists():  # killed before the replaced dataset was removed
                _remove_folder(aside)
                aside.mkdir()
            for name in (FILE_NAME, CARD_NAME):
                (aside / name).unlink(missing_ok=True)  # complete, but not in its place
            _tell(out, aside, folder)
            try:
                yield
                refuse_foreign(folder)  # as it is removed with what was put there since
            except BaseException:
                if any(aside.glob("*.tar")):
                    say(
                        f"{out}: is as it was; the unfinished dataset is in {aside}: the same "
                        "command goes on with it; remove that folder if you do not want it"
                    )
                raise
            card = folder.read(CARD_NAME)
            if card is not None and not is_own(card):
                say(staying(out, Manifest.load(aside)))
                (aside / CARD_NAME).write_bytes(card)
            _take_place(aside, place, former)
    finally:
        with suppress(OSError):  # it holds shards
            aside.rmdir()


def put_back(out: str) -> None:
    """Give a dataset its name back after a kill between the two renames of its replacement.

    Raises:
        OutputError: it cannot be renamed.
    """
    place = Path(os.path.realpath(out))
    if not place.name or place.exists():
        return
    former = _beside(place, _OLD)
    if not (former / FILE_NAME).is_file():  # none, or one that is being removed
        return
    try:
        former.rename(place)
    except OSError as error:
        raise OutputError(
            f"{place}: its dataset is in {former}, where an unfinished --overwrite left it, and "
            f"cannot be put back: {error.strerror or error}; rename it, or remove it"
        ) from error
    say(f"{out}: is put back from {former}, where an unfinished --overwrite left it")


def mention_leftover(out: str) -> None:
    """Say which folders a replacement of a local dataset left that was begun and not finished."""
    place = Path(os.path.realpath(out))
    if not place.name:  # the root of a file system
        return
    for folder in (_beside(place, _NEW), _beside(place, _OLD)):
        if folder.is_dir():
            say(f"{folder}: was left by an unfinished --overwrite; remove it if you do not want it")


def _beside(place: Path, suffix: str) -> Path:
    return place.with_name(f".{place.name}{suffix}")


def _tell(out: str, aside: Path, folder: OutputFolder) -> None:
    if any(aside.glob("*.tar")):
        say(f"going on with the unfinished dataset in {aside}")
    if folder.names():
        say(f"{out}: stays as it is until the new dataset, in {aside}, is complete")


def _take_place(aside: Path, place: Path, former: Path) -> None:
    try:
        shutil.copymode(place, aside)
        (place / _REPLACED).touch()
        if exchange(aside, place):
            former = aside
        else:
            _remove_folder(former)
            place.rename(former)
            aside.rename(place)
        sync_folder(str(place.parent))
    except OSError as error:
        moved = not place.exists() and former.is_dir()
        raise OutputError(
            f"{place}: the new dataset in {aside} cannot take its place: "
            f"{error.strerror or error}; run the same command again"
            f"{f' (the former dataset is in {former})' if moved else ''}"
        ) from error
    _remove_folder(former)


def _remove_folder(path: Path) -> None:
    """Remove a dataset, its manifest first: what is left by a kill is then no dataset."""
    with suppress(OSError):
        (path / FILE_NAME).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
