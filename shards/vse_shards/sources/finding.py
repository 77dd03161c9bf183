"""Images under other names than a source gives: from another machine, system or release.

A row's name is tried as it is written. Only where no such file exists are the files of the folder
listed, once, and looked up by less and less of the name. A file is never taken for two names, and
never one of several: a wrong picture is worse than a missing one.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from urllib.parse import unquote

from vse_shards import reach, storage
from vse_shards.errors import SourceError
from vse_shards.sources.base import Location
from vse_shards.sources.splits import find_split

# COCO numbers its images across splits and releases: COCO_val2014_000000391895.jpg of 2014 is
# 000000391895.jpg in train2017.
_COCO = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.jpg", re.IGNORECASE)
_COCO_YEAR = re.compile(r"(?:^|/|COCO_)(?:train|val|test)20(?:14|15|17)[/_]", re.IGNORECASE)
_SHOWN = 80  # characters of a name in a message
_DECODINGS = 3  # of the escapes of a name: %2520 is %20, which is a space


class ImageFinder:
    """Paths of the images in a folder by the names that the rows of a source give.

    One finder serves one reading of a source: it remembers which names it has seen.

    Args:
        folder: folder or URL that names are relative to.
        say: receives a line for each kind of look-up that was needed, with an example.
    """

    def __init__(self, folder: str, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._kinds: set[str] = set()
        self._last: tuple[str, tuple[Location, str]] | None = None
        self._written = array("q")  # hashes of the paths that exist as written: 8 bytes a row
        self._own: set[int] | None = None  # the same, once a name had to be looked up
        self._names: dict[str, str] = {}  # the row's name by the file that was looked up for it

    def find(self, name: str) -> str:
        """Return the path of an image; one that does not exist if the image is missing.

        Args:
            name: path as the row has it, relative to the folder or absolute, or a URL.

        Raises:
            SourceError: another row's image was found under this name's file.
            OSError: the folder is remote and cannot be listed.
        """
        return self.locate(name)[0].path

    def locate(self, name: str) -> tuple[Location, str]:
        """Return the location of an image, and its name for messages.

        The name is the row's own, except for a missing image that several files could be: then it
        names these as well.
        """
        # Tables name an image in several rows, one after the other.
        if self._last is None or name != self._last[0]:
            self._last = name, self._locate(name)
        return self._last[1]

    def _locate(self, name: str) -> tuple[Location, str]:
        if storage.is_url(name):
            return Location(storage.locate(self._folder, name)), name
        path, size = storage.locate_file(self._folder, name)
        if reach.is_outside(path):
            return Location(path), name
        if size >= 0:
            if path in self._names:
                raise SourceError(_twice(self._names[path], name, path))
            (self._written.append if self._own is None else self._own.add)(hash(path))
            return Location(path, 0, size), name
        kind, found = self._look_up(name)
        paths = [storage.locate(self._folder, one) for one in found]
        if len(paths) > 1:
            return Location(path), f"{name} ({' or '.join(map(_shown, sorted(found)[:2]))}?)"
        if not paths or not self._free(paths[0], name):
            return Location(path), name
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._say(f"images are found {kind}: {_shown(name)} is {_shown(found[0])}")
        return Location(paths[0]), name

    def _free(self, path: str, name: str) -> bool:
        """Return whether no other name has this file; take it for this name."""
        if self._names.setdefault(path, name) != name:
            return False
        if self._own is None:
            self._own, self._written = set(self._written), array("q")
        # The file must not be a row's own image: that row's picture is not the missing one.
        if hash(path) in self._own:
            del self._names[path]
            return False
        return True

    def _look_up(self, name: str, decodings: int = _DECODINGS) -> tuple[str, list[str]]:
        """Return the first kind of look-up that finds files, and these, relative to the folder."""
        slashed = name.replace("\\", "/")
        parts = [part for part in slashed.split("/") if part not in ("", ".")]
        if not parts:
            return "", []
        same = self._listing.get(_key(parts[-1]), [])
        whole = [one for one in same if _key(one) == _key("/".join(parts))]
        for kind, plain in _SPELLINGS:
            found = [one for one in whole if plain(one) == plain("/".join(parts))]
            if found:
                return kind, found
        decoded = unquote(slashed) if decodings else slashed
        if decoded != slashed and (found := self._look_up(decoded, decodings - 1)[1]):
            return "with escapes such as %20 decoded", found
        if found := self._nearest(parts, same):
            return "by the end of their paths", found
        return "by COCO's id", self._by_coco_id(slashed, parts[-1])

    def _nearest(self, parts: list[str], files: list[str]) -> list[str]:
        """Return the files whose paths share most with the end of a name, given in parts."""
        name = [_key(part) for part in parts]
        # Where the row's own folder exists, an image that is not in it is missing: one of the same
        # name in another folder is another picture.
        least = next(
            n for n in range(len(name), 0, -1) if n == 1 or "/".join(name[-n:-1]) in self._folders
        )
        if parts[:-1] and storage.is_folder(storage.join(self._folder, "/".join(parts[:-1]))):
            least = len(parts)
        shared = {}
        for file in files:
            path = _key(file).split("/")
            same = _shared(name, path)
            flat = same == len(path)
            if flat or (same >= least and not _of_other_split("/".join(parts), file)):
                shared[file] = same
        return [file for file, same in shared.items() if same == max(shared.values())]

    def _by_coco_id(self, name: str, base: str) -> list[str]:
        number = _COCO.fullmatch(base)
        found = self._coco.get(number[1], []) if number else []
        return [one for one in found if _COCO_YEAR.search(name) or _COCO_YEAR.search(one)]

    @cached_property
    def _listing(self) -> dict[str, list[str]]:
        """The files of the folder by their base names, in one spelling."""
        listing = defaultdict(list)
        for one in storage.walk(self._folder):
            listing[_key(one.rpartition("/")[2])].append(one)
        return listing

    @cached_property
    def _folders(self) -> set[str]:
        """The ends of the paths of all folders that hold files: ``a/b`` gives ``b`` and ``a/b``."""
        paths = {_key(one).rpartition("/")[0] for files in self._listing.values() for one in files}
        parts = [path.split("/") for path in paths]
        return {"/".join(one[start:]) for one in parts for start in range(len(one))}

    @cached_property
    def _coco(self) -> dict[str, list[str]]:
        numbered = defaultdict[str, list[str]](list)
        for base, files in self._listing.items():
            if number := _COCO.fullmatch(base):
                numbered[number[1]] += files
        return numbered


def _key(text: str) -> str:
    """Return what is equal for names that differ in case or in Unicode's form alone."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


# From the least change of a name to the most.
_SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("with / in place of \\", str),
    ("in another Unicode form", lambda text: unicodedata.normalize("NFC", text)),
    ("in another case", _key),
)


def _shared(name: list[str], file: list[str]) -> int:
    """Return how many parts two paths share from their ends."""
    pairs = list(zip(reversed(name), reversed(file), strict=False))
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _of_other_split(name: str, file: str) -> bool:
    """Return whether two paths name splits that differ: train/1.jpg is not val/1.jpg."""
    wanted, found = find_split(name, image=True), find_split(file, image=True)
    return wanted is not None and found is not None and wanted[0] != found[0]


def _twice(first: str, second: str, path: str) -> str:
    return (
        f"{_shown(path)}: is the image of {_shown(second)}, and the only file with the name of "
        f"{_shown(first)}, which does not exist; correct that name, or --images"
    )


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else "..." + text[-(_SHOWN - 3) :]
