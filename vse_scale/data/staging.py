"""Remote shards on a node's own disk: fetched once, checked, and the oldest out first."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from vse_scale.errors import DatasetError
from vse_shards.manifest import ShardRecord
from vse_shards.storage import open_binary

_PART = ".part"
_BLOCK = 1 << 20  # bytes copied and hashed at a time
_THREADS = 4  # downloads at once, of each process


def default_folder() -> Path:
    """Where shards are staged if nobody says otherwise: the system's temporary folder.

    It is on the node itself, and ``TMPDIR`` moves it.
    """
    return Path(tempfile.gettempdir()) / f"vse_scale-shards-{os.getuid()}"


@dataclass(frozen=True)
class StagingOptions:
    """Where and how remote shards are kept on this machine.

    Attributes:
        folder: on a disk of this node; None: see `default_folder`.
        gigabytes: limit of all tars in the folder together, in units of 10**9 bytes. Their
            indices, about a thousandth of that, come on top.
        ahead: shards that are fetched before they are asked for.
    """

    folder: str | None = None
    gigabytes: float = 100.0
    ahead: int = 2

    @property
    def limit_bytes(self) -> int:
        """The limit in bytes."""
        return round(self.gigabytes * 10**9)


class StagingCache:
    """Shards of one dataset, copied to a local folder as they are needed.

    Several processes of a node, and several runs, can share the folder: a shard is downloaded by
    one of them while the others wait, is written under a temporary name, held against the
    manifest's sha256 and renamed. A shard stays where it is while a process has prepared it; where
    the limit is reached, the one that was used longest ago and that nobody has prepared is removed.

    Args:
        source: URL of the dataset; anything that fsspec opens.
        folder: made if missing.
        limit_bytes: of all tars in the folder together.

    Raises:
        DatasetError: the folder cannot be made.
    """

    def __init__(self, source: str, folder: Path, limit_bytes: int) -> None:
        self._source, self._folder, self._limit = source.rstrip("/"), folder, limit_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatasetError(
                f"{folder}: cannot hold staged shards: {error.strerror}; set data.cache_dir"
            ) from error
        self._guard = threading.Lock()
        self._wanted: set[str] = set()
        self._futures: dict[str, Future[Path]] = {}
        self._held: dict[str, int] = {}  # name -> handle with a shared lock
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        for _ in range(_THREADS):  # daemons: leaving the interpreter waits for no download
            threading.Thread(target=self._work, name="staging", daemon=True).start()

    def prepare(self, shards: Sequence[ShardRecord]) -> None:
        """Begin to fetch these, in this order, and let go of all others."""
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
        """Give the local path of a shard that was prepared, waiting for it if need be.

        Raises:
            DatasetError: it cannot be fetched, or is not what the manifest says.
        """
        future = self._futures[shard.name]
        if not future.cancel():  # else it is far down the queue, and wanted now
            with contextlib.suppress(Exception):  # tried again here, and said if it fails again
                return future.result()
        return self._stage(shard)

    def index(self, shard: ShardRecord) -> str:
        """Give the text of a shard's index.

        Raises:
            DatasetError: as for `fetch`.
        """
        path = self._path(shard).with_suffix(".idx")
        with self._locked(path.name):
            with contextlib.suppress(OSError):
                kept = path.read_bytes()
                if hashlib.sha256(kept).hexdigest() == shard.index_sha256:
                    return kept.decode()
            self._download(shard.index_name, path, shard.index_sha256)
            return path.read_text("utf-8")

    def close(self) -> None:
        """Let go of all shards, and end the threads once what they fetch is there."""
        self.prepare([])
        for _ in range(_THREADS):
            self._queue.put(None)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job()

    def _fulfil(self, shard: ShardRecord, future: Future[Path]) -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(self._stage(shard))
            except BaseException as error:
                future.set_exception(error)

    def _path(self, shard: ShardRecord) -> Path:
        # The digest is part of the name: another dataset's train-000000.tar is another file.
        return self._folder / f"{shard.sha256[:16]}-{shard.name}"

    def _stage(self, shard: ShardRecord) -> Path:
        """Make sure that a shard is here, and hold it if it is still wanted."""
        path = self._path(shard)
        # Nobody throws a shard out under this lock, so that none is fetched and lost before it is
        # held.
        with self._locked(path.name):
            if _size(path) != shard.bytes:
                part = self._reserve(path, shard.bytes)
                self._download(shard.name, path, shard.sha256, part)
            handle = os.open(path, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_SH)
            os.utime(path)
        with self._guard:
            if shard.name in self._wanted and shard.name not in self._held:
                self._held[shard.name] = handle
            else:
                os.close(handle)
        return path

    def _download(self, name: str, path: Path, sha256: str, part: Path | None = None) -> None:
        """Copy a file of the source under a temporary name, check it, and rename it."""
        mode = "wb" if part is None else "r+b"  # what was reserved stays reserved
        part = part or path.with_name(path.name + _PART)
        digest = hashlib.sha256()
        try:
            try:
                with open_binary(f"{self._source}/{name}") as remote, part.open(mode) as local:
                    while block := remote.read(_BLOCK):
                        digest.update(block)
                        local.write(block)
                    local.flush()
                    os.fsync(local.fileno())
            except Exception as error:  # every kind of storage has errors of its own
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                remedy = (
                    "; make room, or lower data.cache_gb, or set data.cache_dir" if full else ""
                )
                raise DatasetError(
                    f"{self._source}/{name}: cannot be staged in {self._folder}: {reason}{remedy}"
                ) from error
            if digest.hexdigest() != sha256:
                raise DatasetError(
                    f"{self._source}/{name}: has sha256 {digest.hexdigest()[:12]}, the manifest "
                    f"says {sha256[:12]}; copy the dataset again, or run vse-shards verify"
                )
            with self._locked("room"):  # whoever counts what is there counts it once
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, path: Path, size: int) -> Path:
        """Make room for a tar and take it, by a temporary file of its full size.

        Raises:
            DatasetError: all that could be thrown out is in use.
        """
        part = path.with_name(path.name + _PART)
        with self._locked("room"):
            path.unlink(missing_ok=True)
            self._remove_remains()
            tars = {tar: tar.stat() for tar in self._folder.glob("*.tar")}
            parts = sum(max(0, _size(found)) for found in self._folder.glob(f"*.tar{_PART}"))
            room = self._limit - parts - sum(status.st_size for status in tars.values())
            for tar in sorted(tars, key=lambda tar: tars[tar].st_mtime_ns):
                if room >= size:
                    break
                if self._remove_unused(tar):
                    room += tars[tar].st_size
            if room < size:
                raise DatasetError(
                    f"{self._folder}: has no room for {size:,} bytes more within the limit of "
                    f"{self._limit:,}, all of its shards are in use; raise data.cache_gb, or give "
                    "each run its own data.cache_dir"
                )
            try:
                with part.open("wb") as file:
                    file.truncate(size)
            except OSError as error:
                raise DatasetError(f"{part}: cannot be written: {error.strerror}") from error
        return part

    def _remove_remains(self) -> None:
        """Remove what downloads left that were killed: nobody holds their locks."""
        for part in self._folder.glob(f"*.tar{_PART}"):
            with (
                contextlib.suppress(BlockingIOError),
                self._locked(part.name.removesuffix(_PART), fcntl.LOCK_NB),
            ):
                part.unlink(missing_ok=True)

    def _remove_unused(self, tar: Path) -> bool:
        """Remove a shard that no process holds or fetches; its index goes with it."""
        with (
            contextlib.suppress(BlockingIOError, FileNotFoundError),
            self._locked(tar.name, fcntl.LOCK_NB),
            tar.open("rb") as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tar.unlink()
            tar.with_suffix(".idx").unlink(missing_ok=True)
            return True
        return False

    @contextmanager
    def _locked(self, name: str, flag: int = 0) -> Iterator[None]:
        """Keep every other process of the node, and thread of this one, out."""
        with (self._folder / f"{name}.lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | flag)
            yield


def _size(path: Path) -> int:
    """Give a file's size in bytes, -1 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
