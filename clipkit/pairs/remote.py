"""Files behind a URL, read in ranges through fsspec: tried again when the network fails, never half an answer.

Whatever fsspec has a driver for works: ``http``, ``https``, ``s3``, ``gs``, ``hf``, ... (some need their own package).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from clipkit.errors import ClipkitError

TRIES = 7
PAUSE = 0.2  # seconds before the second try, doubled before each further one: 12 in all
_STALLED = 30  # seconds without a byte after which an HTTP request counts as failed

T = TypeVar("T")


class UnreachableError(ClipkitError):
    """The network or the server failed for good. No bad sample: the run has to stop, not to go on without it."""


def is_remote(path: object) -> bool:
    """Whether ``path`` is a URL."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(path)) is not None


@dataclass(frozen=True)
class Remote:
    """A file behind a URL.

    Attributes:
        url: where it is.
        size: its bytes.
        tag: what changes when its content does, as far as the server tells (ETag, time of change).
    """

    url: str
    size: int
    tag: str

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.url

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size); fewer only at the end of the file.

        Raises:
            UnreachableError: they could not be had, however often they were asked for.
        """
        stop = min(offset + size, self.size)

        def ask() -> bytes:
            data: bytes = _driver(self.url).cat_file(self.url, start=offset, end=stop)
            if len(data) == self.size != stop - offset:  # a server that knows no ranges
                data = data[offset:stop]
            if len(data) != stop - offset:
                raise OSError(f"{len(data)} bytes came instead of {stop - offset}")
            return data

        return _persistently(ask, f"{self.url}: bytes {offset}-{stop}") if stop > offset else b""


def find_remote(url: str) -> Remote:
    """The file at ``url``, by what the server tells of it.

    Raises:
        ClipkitError: there is none, or it is not known how large it is.
        UnreachableError: the server does not answer.
    """
    told = _persistently(lambda: _driver(url).info(url), url)
    if told.get("size") is None:
        raise ClipkitError(f"{url}: the server does not tell its size, so it cannot be read in ranges; download it")
    tag = next(
        (
            told[k]
            for k in ("ETag", "etag", "md5Hash", "mtime", "Last-Modified", "LastModified", "created")
            if told.get(k)
        ),
        "",
    )
    return Remote(url, int(told["size"]), str(tag))


def list_remote(url: str) -> list[str]:
    """URLs of the tars that a glob or a folder's URL names, sorted.

    Raises:
        ClipkitError: none is there, or the server does not list.
    """
    pattern = url if any(c in url for c in "*?[") else f"{url.rstrip('/')}/*.tar"
    driver = _driver(url)
    found = _persistently(lambda: driver.glob(pattern), pattern)
    if not found:
        raise ClipkitError(f"{pattern}: no shard found; name them, as in {url.rstrip('/')}/{{000..009}}.tar")
    return sorted(driver.unstrip_protocol(name) for name in found)


def read_whole(url: str) -> bytes | None:
    """The content of a small file, or None where there is none."""
    try:
        return _persistently(lambda: bytes(_driver(url).cat_file(url)), url)
    except UnreachableError:
        raise
    except ClipkitError:
        return None


def _persistently(ask: Callable[[], T], what: str) -> T:
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            return ask()
        except FileNotFoundError as error:
            if _is_absent(error):
                raise ClipkitError(f"{what}: no such file on the server") from None
            reason = _short(error.__cause__ or error)
            if _is_refused(error.__cause__):
                raise ClipkitError(f"{what}: refused ({reason}); check the address and your access") from None
        except (PermissionError, NotImplementedError) as error:
            raise ClipkitError(f"{what}: refused ({_short(error)}); check the address and your access") from None
        except ClipkitError:
            raise
        except Exception as error:  # every driver has exceptions of its own, and none says which of them will pass
            if _is_refused(error):
                raise ClipkitError(f"{what}: refused ({_short(error)}); check the address and your access") from None
            reason = _short(error)
    raise UnreachableError(
        f"{what} could not be read in {TRIES} tries ({reason}); check the network, then continue with --resume auto"
    )


def _is_absent(error: FileNotFoundError) -> bool:
    """Whether the server said that there is no such file: fsspec says so too when it did not answer."""
    cause = error.__cause__
    return cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) in (404, 410)


def _is_refused(error: BaseException | None) -> bool:
    """Whether an HTTP server has made up its mind: asking again gives the same answer."""
    status = getattr(error, "status", 0)
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)


def _short(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _driver(url: str) -> Any:
    return _driver_of(url.split("://", 1)[0], os.getpid())


@lru_cache(maxsize=8)
def _driver_of(protocol: str, pid: int) -> Any:
    """fsspec's driver for ``protocol`` in this process: one that was made before a fork cannot be used behind it."""
    import fsspec

    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_STALLED, sock_read=_STALLED)
        options = {"client_kwargs": {"timeout": timeout}, "use_listings_cache": False}
    try:
        return fsspec.filesystem(protocol, skip_instance_cache=True, **options)
    except (ImportError, ValueError) as error:
        raise ClipkitError(f"{protocol}://: cannot be read ({_short(error)})") from None
