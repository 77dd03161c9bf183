"""Local copies of remote shards: fetched once per node, verified, dropped when unused longest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from vse_scale.console import log
from vse_scale.data.cache_files import default_folder as default_folder
from vse_scale.data.cache_files import make_own, opened, size_of
from vse_scale.data.staged import Counts, Tally
from vse_scale.errors import DatasetError
from vse_shards.columns import COLUMN_FILE, ColumnFile, TabledRecord
from vse_shards.manifest import ShardRecord
from vse_shards.masking import masked
from vse_shards.remote import attempt
from vse_shards.storage import open_stream, sha256_of

_PART = ".part"
_TABLE = ".idx.npy"
_BLOCK = 1 << 20  # bytes copied and hashed at a time
THREADS = 4  # concurrent downloads of a process
_TRIES = 2  # of a download whose bytes are not the manifest's
_INDEX_BYTES = 4096  # at most, for each sample of a shard, and once more


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class StagingOptions:
    """Place and limit of the local copies of remote shards.

    Attributes:
        folder: folder on a disk of this node; None: see `default_folder`.
        gigabytes: limit of all tars in the folder together, in units of 10**9 bytes. Their
            indices, about a thousandth of that, come on top.
        ahead: number of shards that are fetched before they are read.
        folder_name: the user's name of ``folder``, for messages.
        limit_name: the user's name of ``gigabytes``, for messages.
        on_block: called after each block of a file that is copied, in any thread.
    """

    folder: str | None = None
    gigabytes: float = 100.0
    ahead: int = 2
    folder_name: str = "TMPDIR or StagingOptions.folder"
    limit_name: str = "StagingOptions.gigabytes"
    on_block: Callable[[], None] = _nothing

    @property
    def limit_bytes(self) -> int:
        """Limit in bytes."""
        return round(self.gigabytes * 10**9)


class StagingCache:
    """Shards of one dataset, copied to a local folder as they are needed.

    Several processes of a node, and several runs, can share the folder: one of them downloads a
    shard while the others wait. It is written under a temporary name, compared with the manifest's
    sha256 and renamed; a process that finds it later compares it once more. A shard stays while a
    process has prepared it; at the limit, the least recently used shard that no process has
    prepared is removed.

    Args:
        source: URL of the dataset, in any protocol of fsspec.
        folder: folder of the copies, created if missing, for its owner alone.
        limit_bytes: limit of all tars in the folder together.
        folder_name: the user's name of ``folder``, for messages.
        limit_name: the user's name of ``limit_bytes``, for messages.
        on_block: called after each block of a file that is copied, in any thread.

    Raises:
        DatasetError: the folder cannot be created, or is another user's.
    """

    def __init__(
        self,
        source: str,
        folder: Path,
        limit_bytes: int,
        *,
        folder_name: str = "folder",
        limit_name: str = "limit_bytes",
        on_block: Callable[[], None] = _nothing,
    ) -> None:
        self._source, self._folder, self._limit = source.rstrip("/"), folder, limit_bytes
        self._folder_name, self._limit_name = folder_name, limit_name
        self._on_block = on_block
        make_own(folder, folder_name)
        self._guard = threading.Lock()
        self._tally = Tally()
        self._wanted: set[str] = set()
        self._futures: dict[str, Future[Path]] = {}
        self._held: dict[str, int] = {}  # name -> handle with a shared lock
        self._columns: list[Path] = []  # that this process has opened
        self._verified: dict[str, int] = {}  # name -> inode of the file that was compared
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        for _ in range(THREADS):  # daemons, so that exit waits for no download
            threading.Thread(target=self._work, name="staging", daemon=True).start()

    def prepare(self, shards: Sequence[ShardRecord]) -> None:
        """Start to fetch these shards in this order, and release all others."""
        with self._guard:
            self._wanted = {shard.name for shard in shards}
            for name in self._held.keys() - self._wanted:
                os.close(self._held.pop(name))
            for name in self._futures.keys() - self._wanted:
                self._futures.pop(name).cancel()
            for shard in shards:
                if shard.name not in self._futures:
                    future: Future[Path] = Future()
                    self._futures[shard.name] = future
                    self._queue.put(lambda s=shard, f=future: self._fulfil(s, f))  # type: ignore[misc]

    def fetch(self, shard: ShardRecord) -> Path:
        """Wait for a prepared shard and return its local path.

        Raises:
            DatasetError: it cannot be fetched, or differs from the manifest.
        """
        future = self._futures[shard.name]
        began = time.perf_counter()
        try:
            # A shard that is still in the queue is fetched here, ahead of those before it. One
            # that has failed is tried again here, which raises the error if it fails again.
            if not future.cancel():
                with contextlib.suppress(Exception):
                    return future.result()
            return self._stage(shard)
        finally:
            self._tally.add("wait_seconds", time.perf_counter() - began)

    def index(self, shard: ShardRecord) -> bytes:
        """Return a shard's index, as `vse_shards.manifest.shard_index` reads it.

        Raises:
            DatasetError: as for `fetch`.
        """
        path = self._path(shard).with_suffix(".idx")
        limit = _INDEX_BYTES * (shard.samples + 1)
        return self._read(shard.index_name, path, shard.index_sha256, limit)

    def table(self, shard: TabledRecord) -> bytes:
        """Return the binary index of a shard.

        Raises:
            DatasetError: as for `fetch`.
        """
        path = self._path(shard).with_suffix(_TABLE)
        limit = _INDEX_BYTES * (shard.samples + 1)
        return self._read(shard.table_name, path, shard.table.sha256, limit)

    def column(self, column: ColumnFile) -> Path:
        """Return the local path of a column, compared with its digest.

        Raises:
            DatasetError: as for `fetch`.
        """
        path = self._folder / column.name  # which has the first digits of its digest
        with self._locked(path.name):
            if not self._has(path, column.sha256):
                self._download(column.name, path, column.sha256, column.bytes)
            os.utime(path)  # those that were used longest ago are removed first
        self._columns.append(path)
        return path

    def _has(self, path: Path, sha256: str) -> bool:
        """Return whether a file is here with this digest."""
        with contextlib.suppress(OSError), opened(path, "rb") as file:
            return sha256_of(file) == sha256
        return False

    def _read(self, name: str, path: Path, sha256: str, limit: int) -> bytes:
        """Return the content of a small file of a shard, which is fetched unless it is here."""
        with self._locked(path.name):
            with contextlib.suppress(OSError), opened(path, "rb") as file:
                kept = file.read()
                if hashlib.sha256(kept).hexdigest() == sha256:
                    return kept
            self._download(name, path, sha256, limit)
            with opened(path, "rb") as file:
                return file.read()

    def close(self) -> None:
        """Release all shards, and end the threads after their current downloads."""
        self.prepare([])
        for _ in range(THREADS):
            self._queue.put(None)

    def counts(self) -> Counts:
        """Return what was staged since the start, see `vse_scale.data.staged.NAMES`."""
        return self._tally.counts()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job()

    def _fulfil(self, shard: ShardRecord, future: Future[Path]) -> None:
        if future.set_running_or_notify_cancel():
            try:
                path = self._stage(shard)
                if isinstance(shard, TabledRecord):  # whose index is not read at the opening
                    self.table(shard)
                future.set_result(path)
            except BaseException as error:
                future.set_exception(error)

    def _path(self, shard: ShardRecord) -> Path:
        # The digest is part of the name: another dataset's train-000000.tar is another file.
        return self._folder / f"{shard.sha256[:16]}-{shard.name}"

    def _stage(self, shard: ShardRecord) -> Path:
        """Download a shard unless it is here, and hold it if it is still wanted."""
        path = self._path(shard)
        # No process removes a shard under this lock, so none is lost between download and hold.
        with self._locked(path.name):
            if self._is_whole(path, shard):
                self._tally.add("found_shards", 1)
            else:
                part = self._reserve(path, shard.bytes)
                self._download(shard.name, path, shard.sha256, shard.bytes, part)
                self._tally.add("fetched_shards", 1)
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            self._verified[path.name] = os.fstat(handle).st_ino
            fcntl.flock(handle, fcntl.LOCK_SH)
            for used in (path, *self._columns):
                with contextlib.suppress(FileNotFoundError):
                    os.utime(used)
        with self._guard:
            if shard.name in self._wanted and shard.name not in self._held:
                self._held[shard.name] = handle
            else:
                os.close(handle)
        return path

    def _is_whole(self, path: Path, shard: ShardRecord) -> bool:
        """Return whether a shard is here with the manifest's bytes, compared once a process."""
        if size_of(path) != shard.bytes:
            return False
        with contextlib.suppress(OSError), opened(path, "rb") as file:
            if self._verified.get(path.name) == os.fstat(file.fileno()).st_ino:
                return True
            if sha256_of(file) == shard.sha256:
                return True
        log.warning("%s: is not what the manifest says; fetching it again", path)
        return False

    def _download(
        self, name: str, path: Path, sha256: str, limit: int, part: Path | None = None
    ) -> None:
        """Copy a file of the source under a temporary name, verify it, and rename it."""
        mode = "wb" if part is None else "r+b"  # "wb" would give the reserved space back
        part = part or path.with_name(path.name + _PART)
        url = f"{self._source}/{name}"
        try:
            for _ in range(_TRIES):
                try:
                    found = attempt(url, lambda: self._copy(url, part, mode, limit))
                except OSError as error:
                    raise self._refusal(url, error) from error
                if found == sha256:
                    break
            else:
                has = f"sha256 {found[:12]}" if found else f"more than the {limit:,} bytes expected"
                raise DatasetError(
                    f"{masked(url)}: has {has}, the manifest says {sha256[:12]}; copy the dataset "
                    "again, or run vse-shards verify"
                )
            self._tally.add("fetched_bytes", part.stat().st_size)
            with self._locked("room"):  # so that no process counts both names, or neither
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _copy(self, url: str, part: Path, mode: str, limit: int) -> str:
        """Copy a file and return its digest, or "" where it does not end at the limit."""
        digest, size = hashlib.sha256(), 0
        with open_stream(url) as remote, self._writing(url, part, mode) as write:
            while block := remote.read(_BLOCK):
                size += len(block)
                if size > limit:
                    return ""
                digest.update(block)
                write(block)
                self._on_block()
        return digest.hexdigest()

    @contextmanager
    def _writing(self, url: str, part: Path, mode: str) -> Iterator[Callable[[bytes], None]]:
        """Open the local copy; what fails on this side is not tried again."""

        def write(block: bytes) -> None:
            try:
                file.write(block)
            except OSError as error:
                raise self._refusal(url, error) from error

        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(opened(part, mode))
            except OSError as error:
                raise self._refusal(url, error) from error
            yield write
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise self._refusal(url, error) from error

    def _refusal(self, url: str, error: OSError) -> DatasetError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = f"; make room, or lower {self._limit_name}, or set {self._folder_name}"
        return DatasetError(
            f"{masked(url)}: cannot be staged in {self._folder}: {error.strerror or error}"
            f"{remedy if full else ''}"
        )

    def _reserve(self, path: Path, size: int) -> Path:
        """Reserve room for a tar by a temporary file of its full size.

        Raises:
            DatasetError: every shard that could be removed is in use.
        """
        part = path.with_name(path.name + _PART)
        with self._locked("room"):
            path.unlink(missing_ok=True)
            self._remove_remains()
            tars = {tar: tar.stat() for tar in self._folder.glob("*.tar")}
            parts = sum(max(0, size_of(found)) for found in self._folder.glob(f"*.tar{_PART}"))
            room = self._limit - parts - sum(status.st_size for status in tars.values())
            for tar in sorted(tars, key=lambda tar: tars[tar].st_mtime_ns):
                if room >= size:
                    break
                if self._remove_unused(tar):
                    room += tars[tar].st_size
            if room < size:
                raise DatasetError(
                    f"{self._folder}: has no room for {size:,} bytes more within the limit of "
                    f"{self._limit:,}, all of its shards are in use; raise {self._limit_name}, "
                    f"or give each run its own {self._folder_name}"
                )
            try:
                with opened(part, "wb") as file:
                    file.truncate(size)
            except OSError as error:
                raise DatasetError(f"{part}: cannot be written: {error.strerror}") from error
            self._remove_columns(min((tars[tar].st_mtime_ns for tar in tars), default=0))
        return part

    def _remove_remains(self) -> None:
        """Remove partial files of killed downloads, whose locks no process holds."""
        for part in self._folder.glob(f"*{_PART}"):
            with (
                contextlib.suppress(BlockingIOError),
                self._locked(part.name.removesuffix(_PART), fcntl.LOCK_NB),
            ):
                part.unlink(missing_ok=True)

    def _remove_columns(self, before: int) -> None:
        """Remove columns of datasets that have no shard here any more.

        They are small beside shards, and outside the limit; but every change of a dataset makes
        new ones. A process that has mapped one keeps it.

        Args:
            before: time of the least recent use of a shard, in nanoseconds.
        """
        for column in self._folder.glob("*.npy"):
            with contextlib.suppress(OSError):
                if COLUMN_FILE.fullmatch(column.name) and column.stat().st_mtime_ns < before:
                    with self._locked(column.name, fcntl.LOCK_NB):
                        column.unlink()

    def _remove_unused(self, tar: Path) -> bool:
        """Remove a shard that no process holds or fetches, with its index."""
        with (
            contextlib.suppress(BlockingIOError, FileNotFoundError),
            self._locked(tar.name, fcntl.LOCK_NB),
            opened(tar, "rb") as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tar.unlink()
            for suffix in (".idx", _TABLE):
                tar.with_suffix(suffix).unlink(missing_ok=True)
            return True
        return False

    @contextmanager
    def _locked(self, name: str, flag: int = 0) -> Iterator[None]:
        """Exclude every other process of the node, and thread of this process."""
        path = self._folder / f"{name}.lock"
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(opened(path, "ab"))
            except OSError as error:
                raise DatasetError(
                    f"{path}: cannot be opened: {error.strerror}; remove it, or set "
                    f"{self._folder_name}"
                ) from error
            fcntl.flock(file, fcntl.LOCK_EX | flag)
            yield
