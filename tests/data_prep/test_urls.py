"""Addresses: failures alone are asked again, limits hold, and nothing inside one's own network is reached."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from data_prep_helpers import captions, content, picture

from clipkit.errors import ClipkitError
from data_prep import prepare
from data_prep.records import MendableError
from data_prep.urls import FetchLimits, WebPicture, _checked_number

OPEN = FetchLimits(fetch_timeout=5, fetch_tries=2, allow_private_addresses=True)


class Site:
    """A local server: path to what it answers; counts how often it was asked."""

    def __init__(self) -> None:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked[self.path] += 1
                with contextlib.suppress(ConnectionError):  # whoever asked has had enough
                    site.answer(self)

            def log_message(self, *_: object) -> None: ...

        self.asked: Counter[str] = Counter()
        self.down: set[str] = set()
        self.moved = ""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=lambda: self.server.serve_forever(0.05), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path
        if name in self.down:
            request.send_error(503)
        elif name.startswith(("/to/", "/moved")):
            request.send_response(302)
            request.send_header("Location", self.moved or name.removeprefix("/to/"))
            request.end_headers()
        elif name == "/drip":
            request.send_response(200)
            request.end_headers()
            for _ in range(100):
                request.wfile.write(b"x")
                time.sleep(0.1)
        elif name == "/endless":
            request.send_response(200)
            request.end_headers()
            for _ in range(400):
                request.wfile.write(b"x" * 10_000)
        elif name == "/cut":
            request.send_response(200)
            request.send_header("Content-Length", "5000")
            request.end_headers()
            request.wfile.write(b"x" * 100)
        elif name == "/gone":
            request.send_error(404)
        else:
            body = b"<html>busy</html>" if name == "/page" else picture(len(name) + int(name[1:].split(".")[0] or 0))
            request.send_response(200)
            request.end_headers()
            request.wfile.write(body)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()


def test_a_second_run_asks_for_the_failures_alone(site: Site, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("url,caption\n" + "".join(f"{site.url}/{n}.jpg,c{n}\n" for n in range(30)))
    site.down = {"/3.jpg", "/17.jpg"}
    options = {"limits": OPEN, "processes": 1, "samples_per_shard": 10}
    first = prepare(table, tmp_path / "a", **options)
    assert (first.samples, first.skipped, first.mendable) == (28, 2, 2)
    assert "the same command tries them again" in str(first) and "answered 503" in first.first_skipped[0].reason
    assert site.asked["/3.jpg"] == 2 and site.asked["/4.jpg"] == 1  # tried twice, then left for later
    site.asked.clear()
    site.down = set()
    second = prepare(table, tmp_path / "a", **options)
    assert (second.samples, second.skipped, second.mendable) == (30, 0, 0)
    assert dict(site.asked) == {"/3.jpg": 1, "/17.jpg": 1}
    assert not (tmp_path / "a" / ".work").exists()
    site.asked.clear()
    prepare(table, tmp_path / "a", **options)
    assert not site.asked
    prepare(table, tmp_path / "fresh", **options)
    assert content(tmp_path / "a") == content(tmp_path / "fresh")


def test_a_page_in_the_place_of_a_picture_may_be_mended(site: Site, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text(f"url,caption\n{site.url}/1.jpg,a\n{site.url}/page,b\n{site.url}/gone,c\n")
    summary = prepare(table, tmp_path / "a", limits=OPEN, processes=1, max_bad_fraction=1)
    assert captions(tmp_path / "a") == [["a"]] and summary.mendable == 2


@pytest.mark.parametrize(
    ("path", "reason", "mendable"),
    [
        ("/gone", "answered 404", True),
        ("/cut", "ended after 100 of 5,000 bytes", True),
        ("/endless", "larger than 1 MB", False),
        ("/drip", "took too long|cannot be fetched", True),
        ("/to//to//to//to//to//to//to//to/1.jpg", "more than 5 redirects", False),
        ("/to/file:///etc/passwd", "only http and https", False),
    ],
)
def test_limits(site: Site, path: str, reason: str, mendable: bool) -> None:
    limits = FetchLimits(max_megabytes=1, fetch_timeout=1.5, fetch_tries=1, allow_private_addresses=True)
    with pytest.raises(ClipkitError, match=reason) as raised:
        WebPicture(site.url + path, limits)()
    assert isinstance(raised.value, MendableError) == mendable


STRANGE = (
    "http://127.0.0.1:9/\ud800.jpg",
    "http://127.0.0.1\0:9/a",
    "http://a b:9/",
    "http://[x",
    "http://127.0.0.1:x/",
)


@pytest.mark.parametrize(
    ("url", "redirected"), [*((url, False) for url in STRANGE), *((url, True) for url in STRANGE[1:])]
)
def test_a_strange_address_is_refused_for_good(site: Site, url: str, redirected: bool) -> None:
    if redirected:
        site.moved, url = url, f"{site.url}/moved"
    with pytest.raises(ClipkitError, match=r"not an address that can be read|no host name") as raised:
        WebPicture(url, OPEN)()
    assert not isinstance(raised.value, MendableError)


def test_a_strange_address_costs_its_own_picture_alone(site: Site, tmp_path: Path) -> None:
    table = tmp_path / "list.jsonl"
    table.write_text(
        f'{{"url": "{site.url}/\\ud800.jpg", "caption": "x"}}\n{{"url": "{site.url}/1.jpg", "caption": "y"}}\n'
    )
    summary = prepare(table, tmp_path / "a", limits=OPEN, processes=1)
    assert captions(tmp_path / "a") == [["y"]] and (summary.skipped, summary.mendable) == (1, 0)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["max_megabytes", "fetch_timeout", "fetch_tries"])
def test_limits_that_make_no_sense(name: str, value: float) -> None:
    with pytest.raises(ClipkitError, match=f"--{name.replace('_', '-')} {value}: expected"):
        FetchLimits(**{name: value})  # type: ignore[arg-type]


def test_redirects_are_followed(site: Site) -> None:
    assert WebPicture(f"{site.url}/to/{site.url}/1.jpg", OPEN)() == WebPicture(f"{site.url}/1.jpg", OPEN)()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::808:808]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        "[2001:0:808:808::80ff:fffe]",
        "[fec0::1]",
        "0.0.0.0",
        "0x7f.1",
        "2130706433",
    ],
)
def test_private_addresses_are_refused(host: str) -> None:
    with pytest.raises(ClipkitError, match=r"is the private address .*; refused"):
        WebPicture(f"http://{host}:9/x.jpg", FetchLimits(fetch_tries=1))()


@pytest.mark.parametrize("number", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"])
def test_public_addresses_are_not(number: str) -> None:
    assert _checked_number(number, 80, False) == number


def test_a_redirect_into_the_own_network_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address passes for public; the one that it leads to is checked again."""
    real = socket.getaddrinfo
    port = site.server.server_port

    def resolve(host: str, *rest: object, **options: object) -> object:
        if host == "public.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))]
        return real(host, *rest, **options)  # type: ignore[arg-type]

    connected: list[str] = []
    connect = socket.create_connection

    def reach(address: tuple[str, int], *rest: object) -> socket.socket:
        connected.append(address[0])
        return connect(("127.0.0.1", port), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", reach)
    limits = FetchLimits(fetch_timeout=5, fetch_tries=1)
    assert WebPicture(f"http://public.example:{port}/1.jpg", limits)()
    with pytest.raises(ClipkitError, match=r"private address 127\.0\.0\.1"):
        WebPicture(f"http://public.example:{port}/to/{site.url}/1.jpg", limits)()
    assert connected == ["93.184.216.34"] * 2  # the checked number, and never the private one


def test_every_number_of_a_name_must_be_public(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(0, 0, 0, "", ("8.8.8.8", 80)), (0, 0, 0, "", ("10.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(ClipkitError, match=r"private address 10\.0\.0\.1"):
        _checked_number("x.example", 80, False)
