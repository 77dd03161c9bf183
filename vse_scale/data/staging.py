"""Remote shards on a node's own disk: fetched once, checked, and the oldest out first."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from vse_scale.errors import DatasetError
from vse_shards.manifest import FILE_NAME, Manifest, ShardRecord
from vse_shards.storage import open_binary

_PART = ".part"
_BLOCK = 1 << 20  # bytes copied and hashed at a time


class StagingCache:
    """Shards of one dataset, copied to a local folder as they are needed.

    Several processes of a node, and several runs, can share the folder: a shard is downloaded by
    one of them while the others wait, is written under a temporary name, held against the
    manifest's sha256 and renamed. A shard stays open in the processes that use it; where the
    limit is reached, the one that was used longest ago and that nobody uses is removed.

    Args:
        source: folder or URL of the dataset; anything that fsspec opens.
        folder: on a disk of this node.
        limit_bytes: of all shards in the folder together.
        ahead: shards that are fetched in the background, beyond the one asked for.

    Raises:
        DatasetError: the source has no manifest, or a shard that is larger than the limit.
    """

    def __init__(self, source: str, folder: Path, *, limit_bytes: int, ahead: int = 2) -> None:
        self.source, self.folder = source.rstrip("/"), folder
        self._limit = limit_bytes
        self._ahead = ahead
        self.manifest = self._load_manifest()
        records = [shard for split in self.manifest.splits.values() for shard in split.shards]
        largest = max(records, key=lambda shard: shard.bytes, default=None)
        # The shard in use, those ahead, and none to be thrown out for the other.
        if largest is not None and largest.bytes * (ahead + 1) > limit_bytes:
            raise DatasetError(
                f"{folder}: {ahead + 1} shards of {largest.bytes:,} bytes ({largest.name}) do not "
                f"fit in the limit of {limit_bytes:,}; raise it, or stage fewer ahead"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._guard = threading.Lock()
        self._held: OrderedDict[str, int] = OrderedDict()  # name -> handle with a shared lock
        self._pending: dict[str, Future[Path]] = {}
        self._pool = ThreadPoolExecutor(ahead + 1, thread_name_prefix="staging")

    def __enter__(self) -> StagingCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fetch(self, order: Sequence[ShardRecord], position: int) -> Path:
        """Give the local path of ``order[position]``, and begin with the shards after it.

        The shard is kept until :meth:`release`.

        Args:
            order: shards in the order in which they will be read.
            position: of the one that is wanted now.

        Raises:
            DatasetError: it cannot be fetched, or is not what the manifest says.
        """
        wanted = order[position : position + self._ahead + 1]
        with self._guard:
            for shard in wanted:
                if shard.name not in self._pending:
                    self._pending[shard.name] = self._pool.submit(self._stage, shard)
            future = self._pending[wanted[0].name]
        return future.result()

    def release(self, shard: ShardRecord) -> None:
        """Say that a shard is not read any more; it stays until its room is needed."""
        with self._guard:
            self._pending.pop(shard.name, None)
            handle = self._held.pop(shard.name, None)
        if handle is not None:
            os.close(handle)

    def close(self) -> None:
        """End the downloads and release all shards."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for handle in self._held.values():
            os.close(handle)
        self._held.clear()

    def _load_manifest(self) -> Manifest:
        path = f"{self.source}/{FILE_NAME}"
        try:
            with open_binary(path) as file:
                text = file.read().decode()
        except (OSError, ValueError, ImportError) as error:
            raise DatasetError(f"{path}: cannot be read: {error}") from error
        return Manifest.loads(text, Path(path))

    def _stage(self, shard: ShardRecord) -> Path:
        """Make sure that a shard is here, and hold it."""
        # The digest is part of the name: another dataset's train-000000.tar is another file.
        path = self.folder / f"{shard.sha256[:16]}-{shard.name}"
        while True:
            with self._locked(f"{path.name}.lock"):
                if not path.exists():
                    index = path.with_suffix(".idx")
                    self._download(shard.index_name, index, shard.index_sha256)
                    part = self._reserve(path, shard.bytes)
                    self._download(shard.name, path, shard.sha256, part)
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue  # thrown out between the two
            fcntl.flock(handle, fcntl.LOCK_SH)
            if path.exists():
                break
            os.close(handle)
        os.utime(path)
        with self._guard:
            self._held[shard.name] = handle
        return path

    def _download(self, name: str, path: Path, sha256: str, part: Path | None = None) -> None:
        """Copy a file of the source under a temporary name, check it, and rename it."""
        part = part or path.with_name(path.name + _PART)
        digest = hashlib.sha256()
        try:
            with open_binary(f"{self.source}/{name}") as remote, part.open("wb") as local:
                while block := remote.read(_BLOCK):
                    digest.update(block)
                    local.write(block)
                local.flush()
                os.fsync(local.fileno())
            if digest.hexdigest() != sha256:
                raise DatasetError(
                    f"{self.source}/{name}: has sha256 {digest.hexdigest()[:12]}, the manifest "
                    f"says {sha256[:12]}; copy the dataset again, or run vse-shards verify"
                )
            part.replace(path)
        except OSError as error:
            raise DatasetError(f"{self.source}/{name}: cannot be staged: {error}") from error
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, path: Path, size: int) -> Path:
        """Make room for a tar and take it, by a temporary file of its full size.

        Raises:
            DatasetError: all that could be thrown out is in use.
        """
        part = path.with_name(path.name + _PART)
        with self._locked("room.lock"):
            part.unlink(missing_ok=True)
            tars = {found: found.stat() for found in self.folder.glob("*.tar*") if _is_shard(found)}
            room = self._limit - sum(status.st_size for status in tars.values())
            for found in sorted(tars, key=lambda tar: tars[tar].st_mtime_ns):
                if room >= size:
                    break
                if found.suffix == ".tar" and _remove_unused(found):
                    room += tars[found].st_size
            if room < size:
                raise DatasetError(
                    f"{self.folder}: has no room for {size:,} bytes more within the limit of "
                    f"{self._limit:,}, all of its shards are in use; raise the limit"
                )
            with part.open("wb") as file:
                file.truncate(size)
        return part

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Keep every other process of the node, and thread of this one, out."""
        with (self.folder / name).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _is_shard(path: Path) -> bool:
    """Whether a file takes room: a shard, or one that is on its way."""
    return path.suffix == ".tar" or path.name.endswith(".tar" + _PART)


def _remove_unused(tar: Path) -> bool:
    """Remove a shard that no process holds; its index goes with it."""
    with contextlib.suppress(FileNotFoundError), tar.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        tar.unlink()
        tar.with_suffix(".idx").unlink(missing_ok=True)
    return True
