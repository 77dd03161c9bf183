"""Requests to any URL that fsspec opens: they end, are tried again, and say why they failed."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from vse_shards.errors import AccessError, StorageError, UserError
from vse_shards.masking import MASK, is_cut_short, masked, masked_about
from vse_shards.progress import say

RETRY_SECONDS = 60.0  # from the first request to the last
DENIED_SECONDS = 2.0  # the same where the storage denies access, which seldom passes
QUIET_SECONDS = 10.0  # without a line
TIMEOUT_SECONDS = 10.0  # without a byte from the server
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0  # seconds between two requests

# Errors of botocore, and of Hugging Face's hub, that no second request mends; neither need be
# installed here.
_SETUP_ERRORS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
_URL_ERRORS = {"ParamValidationError", "HfUriError"}
# Protocols whose URLs hold a bucket alone: a key before it would be looked up, and told, as a name.
_AWS = "put it into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or into a profile (AWS_PROFILE)"
_GOOGLE = "name the file of a service account in GOOGLE_APPLICATION_CREDENTIALS"
_KEYLESS = {"s3": _AWS, "s3a": _AWS, "gs": _GOOGLE, "gcs": _GOOGLE}
T = TypeVar("T")


class ProtocolError(OSError):
    """A URL that fsspec does not open here, whatever is tried."""


_PASSED_ON = (
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    ProtocolError,
    UserError,
)


def is_url(path: str) -> bool:
    """Return whether a path is a URL for fsspec, such as ``s3://bucket/images``."""
    return "://" in path


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it.

    Raises:
        ProtocolError: the protocol is unknown, or its package is not installed.
    """
    from fsspec.core import split_protocol, url_to_fs  # here: it takes long, and few builds need it

    # Chained protocols run what the URL says: one of them renders templates of the file it reads.
    if "::" in url:
        raise ProtocolError(errno.EINVAL, "chained protocols are not opened", masked(url))
    if f"://{MASK}@" in url or f"={MASK}" in url:
        reason = "its password was not recorded; write it into the URL again"
        raise ProtocolError(errno.EINVAL, reason, url)
    if is_cut_short(url):  # whose library would tell a part of it
        reason = "a password in it holds a /; write %2F in its place"
        raise ProtocolError(errno.EINVAL, reason, masked(url))
    protocol = split_protocol(url)[0]
    if protocol in _KEYLESS and re.match(r"[^/]*:[^/]*@", url.partition("://")[2]):
        reason = f"{protocol} takes no key from a URL; {_KEYLESS[protocol]}"
        raise ProtocolError(errno.EINVAL, reason, masked(url))
    try:
        filesystem, inner = url_to_fs(url, **_options(protocol))
    except Exception as error:
        raise ProtocolError(errno.EINVAL, _reason(error, url), masked(url)) from error
    if hasattr(filesystem, "retries"):
        filesystem.retries = 1  # `attempt` tries again, and says so
    return filesystem, inner


def attempt(url: str, action: Callable[[], T]) -> T:
    """Return the result of a request, tried again with growing pauses while it fails.

    Args:
        url: URL of the request, for messages.
        action: the request; it may be made several times.

    Raises:
        FileNotFoundError, NotADirectoryError, IsADirectoryError: as the storage says.
        AccessError: the storage denies access.
        StorageError: it failed for `RETRY_SECONDS`.
        UserError: as the action raises.
    """
    started = time.monotonic()
    pause = _FIRST_PAUSE
    while True:
        try:
            return action()
        except Exception as caught:  # each backend raises its own types
            error = _underlying(caught)
            if isinstance(error, _PASSED_ON):
                raise
            denied = _is_denied(error)
            waited = time.monotonic() - started
            limit = DENIED_SECONDS if denied else RETRY_SECONDS
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if kinds & _URL_ERRORS:
                reason = f"{masked(url)}: is no address of its storage: {_reason(error, url)}"
                raise AccessError(f"{reason}; correct the URL") from caught
            if kinds & _SETUP_ERRORS:
                limit = 0
            if waited + pause > limit:
                raise _failure(url, error, denied or not limit) from caught
            if waited + pause > QUIET_SECONDS:
                say(
                    f"{url}: {_reason(error, url)}; trying again for up to "
                    f"{max(limit - waited, 1):.0f} s more"
                )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _underlying(error: Exception) -> BaseException:
    """Return what a missing file is made of: fsspec says it of every failure of a web server."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None:
        return error
    if isinstance(cause, TimeoutError | ConnectionError):
        return cause
    of_web = type(cause).__module__.startswith("aiohttp")
    return cause if of_web and getattr(cause, "status", 0) not in (404, 410) else error


def _failure(url: str, error: BaseException, denied: bool) -> StorageError:
    reason = f"{masked(url)}: the storage fails: {_reason(error, url)}"
    if not denied:
        return StorageError(
            f"{reason}; tried for {RETRY_SECONDS:.0f} s; this may pass: run the same command again"
        )
    return AccessError(
        f"{reason}; correct the credentials or the permission, and run the same command again "
        "(without the permission to list, some storages say the same of a file that is not there)"
    )


def _reason(error: BaseException, url: str) -> str:
    said = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    text = masked_about(url, " ".join(str(said).split()))
    return text if len(text) <= 200 else text[:197] + "..."


def _is_denied(error: BaseException) -> bool:
    return isinstance(error, PermissionError) or getattr(error, "status", 0) in (401, 403)


def _options(protocol: str | None) -> dict[str, Any]:
    """Return options of a file system: every request ends, and no listing outlives a call."""
    if protocol in ("s3", "s3a"):
        options: dict[str, Any] = {
            "config_kwargs": {
                "connect_timeout": TIMEOUT_SECONDS,
                "read_timeout": TIMEOUT_SECONDS,
                "retries": {"total_max_attempts": 1},
            },
            "use_listings_cache": False,
        }
    elif protocol in ("http", "https"):
        from aiohttp import ClientTimeout  # http of fsspec needs it

        timeout = ClientTimeout(total=None, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS)
        options = {"client_kwargs": {"timeout": timeout}, "use_listings_cache": False}
    else:
        return {}
    import fsspec  # here: as above

    chosen = fsspec.config.conf.get(protocol, {})  # what the user set for fsspec is kept
    return {name: value for name, value in options.items() if name not in chosen}
