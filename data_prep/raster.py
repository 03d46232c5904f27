"""SVG drawings to pixels, with as many processes as asked for.

resvg holds Python's lock while it draws, so threads gain nothing. The processes are plain runs of this file
and not ``multiprocessing``: that would fork a program that may have threads and torch in it, or import its
main module anew.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THUMBNAIL = 32  # side of the small picture that drawings are compared by, in pixels


def rasterise(path: str, size: int) -> bytes:
    """The drawing at ``path`` on a white square of ``size`` pixels, as a PNG."""
    import resvg_py

    # Without the machine's fonts the result is the same everywhere, and starting is faster; no drawing has
    # text.
    return bytes(
        resvg_py.svg_to_bytes(svg_path=path, width=size, height=size, background="white", skip_system_fonts=True)
    )


def thumbnail(path: str) -> bytes:
    """RGB bytes (``THUMBNAIL`` x ``THUMBNAIL`` x 3, uint8) of the drawing at ``path``, whatever size is
    written."""
    from PIL import Image

    return Image.open(io.BytesIO(rasterise(path, THUMBNAIL))).convert("RGB").tobytes()


def rasterise_all(paths: Sequence[Path], size: int, workers: int = 2) -> tuple[list[bytes], list[bytes]]:
    """PNGs of ``size`` pixels and thumbnails of all ``paths``, in their order.

    Raises:
        RuntimeError: a process failed; its last words are in the message.
    """
    workers = max(1, min(workers, len(paths)))
    if workers == 1:
        return [rasterise(str(p), size) for p in paths], [thumbnail(str(p)) for p in paths]
    step = -(-len(paths) // (2 * workers))  # two pieces a process, so that one with easy drawings takes another
    pieces = [paths[start : start + step] for start in range(0, len(paths), step)]
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda piece: _run(piece, size), pieces))
    return [png for pngs, _ in results for png in pngs], [small for _, smalls in results for small in smalls]


def _run(paths: Sequence[Path], size: int) -> tuple[list[bytes], list[bytes]]:
    request = json.dumps({"paths": [str(path) for path in paths], "size": size}).encode()
    done = subprocess.run([sys.executable, __file__], input=request, capture_output=True, check=False)
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        raise RuntimeError(f"drawing pictures failed: {last or f'exit status {done.returncode}'}")
    pngs, thumbnails = [], []
    at, n_small = 0, THUMBNAIL * THUMBNAIL * 3
    while at < len(done.stdout):
        (n,) = struct.unpack_from("<I", done.stdout, at)
        pngs.append(done.stdout[at + 4 : at + 4 + n])
        thumbnails.append(done.stdout[at + 4 + n : at + 4 + n + n_small])
        at += 4 + n + n_small
    return pngs, thumbnails


def _main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    for path in request["paths"]:
        png = rasterise(path, request["size"])
        sys.stdout.buffer.write(struct.pack("<I", len(png)) + png + thumbnail(path))


if __name__ == "__main__":
    sys.path.pop(0)  # this file's own folder: its modules must not stand in for a library's
    _main()
