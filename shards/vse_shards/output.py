"""Output folder of a build: files appear complete, under their final name, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vse_shards import storage
from vse_shards.errors import OutputError
from vse_shards.masking import masked
from vse_shards.remote import attempt, open_filesystem
from vse_shards.system import locked_folder, sync_folder

TEMPORARY = ".vse-tmp"
PLAN_NAME = ".build.json"  # options and source of an unfinished build
PLAN_FOLDER = ".plan"  # folder of a plan that several machines work on


class OutputFolder:
    """A folder on this machine, or a remote folder that fsspec can write to.

    Files of a remote folder are written to a local temporary folder, and uploaded complete.

    A remote folder cannot be locked, nor can one that several machines write to. The build that
    claimed it last owns it: it is named in the plan there, and every other build ends at the next
    file that it would write.

    Attributes:
        owner: name of the build that claimed the folder; "" writes without a look at it.

    Args:
        path: path or URL of the folder.
        owner: as the attribute.
    """

    def __init__(self, path: str, owner: str = "") -> None:
        self.owner = owner
        self.path = path if storage.is_url(path) else str(Path(path).absolute())
        self.remote = storage.is_url(path)

    @contextmanager
    def opened(self, *, shared: bool = False, tidy: bool = True) -> Iterator[None]:
        """Create and lock the folder, and remove temporary files of a killed build.

        A folder that it created, and that an error leaves empty, is removed again.

        Args:
            shared: let other processes write to it that open it in the same way.
            tidy: remove temporary files; False where other machines may be writing them.

        Raises:
            OutputError: the folder cannot be written, or another build is running in it.
        """
        with contextlib.ExitStack() as stack:
            with _explained(self.path):
                if self.remote:
                    filesystem, inner = open_filesystem(self.path)
                    attempt(self.path, lambda: filesystem.makedirs(inner, exist_ok=True))
                else:
                    if not os.path.lexists(self.path):
                        stack.enter_context(_removed_if_empty(self.path))
                    os.makedirs(self.path, exist_ok=True)
                    if not stack.enter_context(locked_folder(self.path, shared=shared)):
                        raise OutputError(
                            f"{self.path}: another build is running in this folder; wait for it, "
                            "or choose another"
                        )
                    if tidy:
                        self.remove_temporary()
                    with tempfile.TemporaryFile(dir=self.path):
                        pass  # fails here, not after hours, if the folder is read-only
            yield

    def remove_temporary(self) -> None:
        """Remove the temporary files of killed builds."""
        if not self.remote:
            for name in os.listdir(self.path):
                if name.endswith(TEMPORARY):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(self.path, name))

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Open a file that takes its final name when the block ends without an error.

        Raises:
            OutputError: the file cannot be written.
        """
        with _explained(f"{self.path}/{name}"), contextlib.ExitStack() as stack:
            folder = self.path
            if self.remote:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
            # The suffix hides it from `names`, and marks it for removal by the next build.
            # Nor do processes of two machines, which may have one number, share a name.
            temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}{TEMPORARY}")
            try:
                with open(temporary, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                self._publish(temporary, name)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yield the path of a scratch file, removed at the end or by the next build."""
        with contextlib.ExitStack() as stack:
            folder = self.path
            if self.remote:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder) / f".{name}{TEMPORARY}"
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Write a complete file.

        Raises:
            OutputError: the file cannot be written.
        """
        with self.writing(name) as file:
            file.write(data)

    def names(self) -> list[str]:
        """Return the names of all finished files."""
        if self.remote:
            with _explained(self.path):
                filesystem, inner = open_filesystem(self.path)
                try:
                    found = attempt(self.path, lambda: filesystem.ls(inner, detail=False))
                except FileNotFoundError:  # object storage has no empty folders
                    return []
            # Some storages keep a folder as an empty object of its own name.
            return sorted({storage.base_name(n) for n in found if n.strip("/") != inner.strip("/")})
        return sorted(name for name in os.listdir(self.path) if not name.endswith(TEMPORARY))

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if it does not exist.

        Raises:
            OutputError: it exists, and cannot be read.
        """
        with _readable(f"{self.path}/{name}"):
            return storage.read_bytes(f"{self.path}/{name}")
        return None

    def sha256(self, name: str) -> str | None:
        """Return the digest of a file, or None if it does not exist.

        Raises:
            OutputError: as for `read`.
        """
        with (
            _readable(f"{self.path}/{name}"),
            storage.open_binary(f"{self.path}/{name}") as file,
        ):
            return storage.sha256_of(file)
        return None

    def remove(self, name: str) -> None:
        """Remove a file if it exists.

        Raises:
            OutputError: it cannot be removed.
        """
        self._check_owner()
        if self.remote:
            path = f"{self.path}/{name}"
            with _explained(path), contextlib.suppress(FileNotFoundError):
                filesystem, inner = open_filesystem(path)
                attempt(path, lambda: filesystem.rm_file(inner))
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.path, name))

    def _publish(self, temporary: str, name: str) -> None:
        self._check_owner()
        if self.remote:
            path = f"{self.path}/{name}"
            filesystem, inner = open_filesystem(path)
            attempt(path, lambda: filesystem.put_file(temporary, inner))
            return
        os.replace(temporary, os.path.join(self.path, name))
        # A rename is durable only once its folder is synced.
        sync_folder(self.path)

    def _check_owner(self) -> None:
        """Refuse to go on in a folder that another build has claimed.

        Raises:
            OutputError: another has, or has finished there.
        """
        if self.owner and not self.is_owned():
            raise OutputError(
                f"{masked(self.path)}: another build has begun in this folder since, and goes on; "
                "wait for it, then run the same command again, or choose another folder"
            )

    def is_owned(self) -> bool:
        """Return whether the build that is called ``owner`` is the last that claimed the folder."""
        wanted = f'"{self.owner}"'.encode()
        # Read again if not: one answer of a storage may be damaged.
        return any(wanted in (self.read(PLAN_NAME) or b"") for _ in range(2))


def remove_folder(folder: OutputFolder, name: str) -> None:
    """Remove a folder in an output folder, with all that is in it, if it exists.

    Raises:
        OutputError: it cannot be removed.
    """
    path = f"{folder.path}/{name}"
    with _explained(path), contextlib.suppress(FileNotFoundError):
        if folder.remote:
            filesystem, inner = open_filesystem(path)
            attempt(path, lambda: filesystem.rm(inner, recursive=True))
        else:
            # A late maker, or a network file system, may put a file there meanwhile.
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """End the block where there is no file; what cannot be read is not taken for that."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OutputError(
            f"{path}: is there, and cannot be read: {error.strerror or error}; mend it or remove "
            "it, or choose another folder"
        ) from error


@contextmanager
def _removed_if_empty(path: str) -> Iterator[None]:
    """Remove a folder that an error leaves without content."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.rmdir(path)
        raise


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Convert an OSError into one line that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{error.filename or path}: cannot be written: {reason}; make room or change the "
            "permission, then run the same command again: finished shards are kept"
        ) from error
