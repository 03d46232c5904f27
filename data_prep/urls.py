"""Pictures from addresses on the web: with limits, and never from inside one's own network.

A list of addresses comes from strangers, so an address may name a machine that only we can reach (a router, a cloud's
metadata service). Every address is therefore resolved here, refused unless all that it resolves to is public, and then
connected to by the very number that was checked, so that a second answer of the name server changes nothing. Redirects
are followed by hand and checked the same way.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from clipkit.errors import ClipkitError
from data_prep.records import MendableError

MAX_REDIRECTS = 5
_AGENT = "clipkit (image-text data preparation)"
_CHUNK = 1 << 16
# NAT64, IPv4-compatible, IPv4-translated: the last 32 bits are an IPv4 address. 6to4 is known to ipaddress, and Teredo
# is not global for it.
_ENDS_IN_IPV4 = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96")))
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")


@dataclass(frozen=True)
class FetchLimits:
    """What a picture from the web may cost."""

    max_megabytes: float = 50.0
    """Largest picture to fetch from an address, in megabytes."""
    fetch_timeout: float = 30.0
    """Seconds that a picture may take to arrive, redirects included."""
    fetch_tries: int = 3
    """Times that an address is asked before it is left for a second run."""
    allow_private_addresses: bool = False
    """Also fetch from this machine and the local network. For tests, and for your own servers."""

    def __post_init__(self) -> None:
        for name, most in (("max_megabytes", 1e6), ("fetch_timeout", 86_400), ("fetch_tries", 1000)):
            value = getattr(self, name)
            if not 0 < value <= most:
                raise ClipkitError(f"--{name.replace('_', '-')} {value}: expected more than 0 and at most {most:,.0f}")


class _Busy(MendableError):
    """Worth asking again in a moment."""


@dataclass(frozen=True)
class WebPicture:
    """A picture at an address: its bytes when called.

    Raises (when called):
        MendableError: the server did not answer, or with an error; a second run asks again.
        ClipkitError: it is of no use to ask again: a bad address, a private one, a picture that is too large.
    """

    url: str
    limits: FetchLimits
    waits: ClassVar[bool] = True

    def __call__(self) -> bytes:
        until = time.monotonic() + self.limits.fetch_timeout
        for attempt in range(self.limits.fetch_tries):
            try:
                return fetch(self.url, self.limits, until)
            except _Busy as error:
                failed = error
                if time.monotonic() + 2**attempt / 4 >= until:
                    break
                time.sleep(2**attempt / 4)
        raise failed


def fetch(url: str, limits: FetchLimits, until: float) -> bytes:
    """The bytes at ``url``, asked once; see ``WebPicture`` for what it raises."""
    for _ in range(MAX_REDIRECTS + 1):
        connection, target = _connect(url, limits, until)
        try:
            connection.connect()
            sock = connection.sock  # http.client forgets it where the answer has no length
            headers = {"User-Agent": _AGENT, "Accept": "image/*,*/*;q=0.5"}
            with _guard(sock, until):
                connection.request("GET", target, headers=headers)
                response = connection.getresponse()
                if response.status in (301, 302, 303, 307, 308):
                    url = _led_to(url, response.getheader("Location") or "")
                    continue
                _check_status(response.status)
                return _body(response, sock, limits, until)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, ClipkitError):
                raise
            raise _Busy(f"cannot be fetched ({' '.join(str(error).split()) or type(error).__name__})") from None
        finally:
            connection.close()
    raise ClipkitError(f"more than {MAX_REDIRECTS} redirects")


@contextlib.contextmanager
def _guard(sock: socket.socket, until: float) -> Iterator[None]:
    """Cut the connection off when the time is over. Each wait for the network has its own limit; this one ends a server
    that sends a byte now and then."""
    timer = threading.Timer(_seconds_left(until), _cut, [sock])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _led_to(url: str, location: str) -> str:
    """The address that a redirect leads to."""
    try:
        return urllib.parse.urljoin(url, location)
    except ValueError:
        raise ClipkitError("a redirect to what is not an address that can be read") from None


def _connect(url: str, limits: FetchLimits, until: float) -> tuple[http.client.HTTPConnection, str]:
    """A connection to a checked address of the host in ``url``, and what to ask it for."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = urllib.parse.quote(parts.query, safe="/?%:@!$&'()*+,;=~")
    except ValueError:
        raise ClipkitError("not an address that can be read") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ClipkitError(f"an address of {parts.scheme or 'no scheme'!r}; only http and https are fetched")
    if re.search(r"[\0-\x20\x7f]", host):  # http.client refuses these, the name server may cut them off
        raise ClipkitError(f"{host[:100]!r} is no host name")
    number = _checked_number(host, port, limits.allow_private_addresses)
    seconds = _seconds_left(until)
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = _CheckedHTTPS(host, port, number, seconds)
    else:
        connection = _CheckedHTTP(host, port, number, seconds)
    return connection, f"{target}?{query}" if query else target


def _checked_number(host: str, port: int, allow_private: bool) -> str:
    """One of the IP addresses of ``host``, all of which are public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise ClipkitError(f"{host[:100]!r} is no host name") from None
    except OSError as error:
        raise _Busy(f"the host {host} cannot be found ({error.strerror or error})") from None
    numbers = [str(entry[4][0]) for entry in found]
    for number in numbers:
        if not allow_private and not _is_public(ipaddress.ip_address(number.split("%")[0])):
            raise ClipkitError(
                f"{host} is the private address {number}; refused (--allow-private-addresses fetches it)"
            )
    return numbers[0]


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether ``address`` leads out of one's own network; so must the IPv4 address inside one of IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return _is_public(address.ipv4_mapped)
        inside = address.sixtofour
        if any(address in network for network in _ENDS_IN_IPV4):
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.is_site_local or address in _LOCAL_NAT64 or (inside and not _is_public(inside)):
            return False
    return address.is_global and not address.is_multicast


def _check_status(status: int) -> None:
    if status != 200:
        busy = status in (408, 425, 429) or status >= 500
        raise (_Busy if busy else MendableError)(f"the server answered {status}")


def _body(response: http.client.HTTPResponse, sock: socket.socket, limits: FetchLimits, until: float) -> bytes:
    most = int(limits.max_megabytes * 1e6)
    announced = response.getheader("Content-Length")
    if announced is not None and announced.isdigit() and int(announced) > most:
        raise ClipkitError(f"larger than {limits.max_megabytes:g} MB; --max-megabytes allows more")
    data = bytearray()
    while True:
        sock.settimeout(_seconds_left(until))
        chunk = response.read1(_CHUNK)
        if not chunk:
            break
        data += chunk
        if len(data) > most:
            raise ClipkitError(f"larger than {limits.max_megabytes:g} MB; --max-megabytes allows more")
    _seconds_left(until)  # a connection that was cut off here looks like one that ended
    if announced is not None and announced.isdigit() and len(data) < int(announced):
        raise _Busy(f"the connection ended after {len(data):,} of {int(announced):,} bytes")
    return bytes(data)


def _seconds_left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise MendableError("took too long; --fetch-timeout allows more")
    return left


class _CheckedHTTP(http.client.HTTPConnection):
    """A connection to the number that was checked, whatever its name means by now."""

    def __init__(self, host: str, port: int, number: str, seconds: float) -> None:
        super().__init__(host, port, timeout=seconds)
        self._number = number

    def connect(self) -> None:
        self.sock = socket.create_connection((self._number, self.port), self.timeout)


class _CheckedHTTPS(http.client.HTTPSConnection):
    """The same with TLS; the certificate must be the name's."""

    def __init__(self, host: str, port: int, number: str, seconds: float) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, port, timeout=seconds, context=self._tls)
        self._number = number

    def connect(self) -> None:
        plain = socket.create_connection((self._number, self.port), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
