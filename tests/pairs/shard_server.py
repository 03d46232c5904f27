"""An HTTP server on this machine that serves a folder in ranges, slowly and badly if it is told to."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("500", "503", "reset", "cut", "short")


@dataclass
class Server:
    """What the server does, and what it was asked for.

    Attributes:
        latency: seconds before each answer.
        fault: (number of the GET, path) -> one of FAULTS, or None.
        ranges: whether it knows ranges.
        absent: the answer where there is no file; buckets that may not be listed say 403.
        asked: (path, Range header) of every GET.
    """

    root: Path
    latency: float = 0.0
    faults: Iterator[str | None] | None = None
    ranges: bool = True
    down: bool = False
    absent: int = 404
    tag: str = "1"
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def gets(self, ending: str = ".tar") -> list[str]:
        """Ranges of the GETs of files with this ending."""
        return [f"{path} {said}" for path, said in self.asked if path.endswith(ending)]


@contextmanager
def serve(root: Path) -> Iterator[Server]:
    """A server of ``root`` at ``.url`` while the block lasts."""
    state = Server(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            with state.lock:
                state.asked.append((self.path, self.headers.get("Range")))
                fault = next(state.faults) if state.faults is not None else None
                if fault:
                    state.failed[fault] += 1
            self.answer(body=True, fault=fault)

        def answer(self, body: bool, fault: str | None = None) -> None:
            time.sleep(state.latency)
            path = state.root / self.path.lstrip("/")
            if state.down or fault == "reset":
                # an end of connection that is no orderly one
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            if fault in ("500", "503") or not path.is_file():
                self.send_response(int(fault or state.absent))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = path.read_bytes()
            total = len(data)
            said = self.headers.get("Range") if state.ranges else None
            if said:
                first, _, last = said.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last or total - 1), total - 1)
                data = data[start : stop + 1]
            self.send_response(206 if said else 200)
            if said:
                self.send_header("Content-Range", f"bytes {start}-{stop}/{total}")
            if fault == "short":  # a proxy that gives less and says so
                data = data[: len(data) // 2]
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", state.tag)
            if state.ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if body:
                with suppress(OSError):
                    self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
                self.close_connection = self.close_connection or fault == "cut"

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
