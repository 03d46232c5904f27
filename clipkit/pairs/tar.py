"""Members of a tar file, by reading its headers only.

Python's ``tarfile`` ends silently at a damaged header, and everything behind it is lost without a word. Here a
damaged header is reported and the walk goes on at the next block that is a header (its magic is ``ustar`` and its
checksum holds).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_EXTENDED = (b"x", b"g", b"L", b"K")  # PAX records and GNU long names: they speak of the next member
_BODILESS = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders: no body follows, whatever their size says
_SCAN = 1 << 20  # bytes read at a time while looking for the next header


@dataclass(frozen=True)
class Member:
    """A regular file in a tar: its name and where its bytes lie."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Damage:
    """Bytes [start, stop) of a tar that could not be understood, and why."""

    start: int
    stop: int
    reason: str


def read_members(path: str | os.PathLike[str]) -> tuple[list[Member], list[Damage]]:
    """All regular members of the tar at ``path`` and every damaged stretch, in file order.

    Understands ustar with prefix, PAX ``path`` and ``size`` records, and GNU long names. Two zero blocks end the
    archive as the format says, unless a header follows them (concatenated tars): then the walk goes on.
    """
    members: list[Member] = []
    damages: list[Damage] = []
    total = Path(path).stat().st_size
    with open(path, "rb", buffering=0) as file:
        fd = file.fileno()
        position = extended = 0
        long_name: str | None = None
        pax: dict[str, str] = {}
        while position + BLOCK <= total:
            header = os.pread(fd, BLOCK, position)
            if header.count(0) == BLOCK:
                position = _next_nonzero(fd, position, total)
                continue
            size = _size(header) if _is_header(header) else None
            if size is None:
                found = _find_header(fd, position + BLOCK, total)
                damages.append(Damage(position, found, "not a tar header"))
                position, long_name, pax = found, None, {}
                continue
            kind = header[156:157]
            body = position + BLOCK
            if kind in _BODILESS:
                size = 0
            elif kind not in _EXTENDED and pax.get("size", "").isdigit():
                size = int(pax["size"])
            if body + size > total:
                # A header inside the claimed body means that the size is wrong; otherwise the file was cut short.
                found = _find_header(fd, body, total)
                damages.append(Damage(position, found, f"{_name(header)}: {size} bytes go past the end of the file"))
                position, long_name, pax = found, None, {}
                continue
            if kind in _EXTENDED:
                extended = position
                data = os.pread(fd, size, body)
                if kind == b"L":
                    long_name = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
                elif kind == b"x":
                    pax = _pax(data)
                position = body + _padded(size)
                continue
            if kind in _REGULAR:
                members.append(Member(pax.get("path") or long_name or _name(header), body, size))
            position, long_name, pax = body + _padded(size), None, {}
        if 0 < total - position < BLOCK:
            damages.append(Damage(position, total, "the file ends inside a block"))
        elif long_name is not None or pax:
            damages.append(Damage(extended, total, "the file ends between an extended header and its member"))
    return members, damages


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _size(header: bytes) -> int | None:
    field = header[124:136]
    if field[0] & 0x80:  # base 256, for members of 8 GiB and more
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return None


def _is_header(block: bytes) -> bool:
    try:
        stored = int(block[148:156].strip(b"\0 "), 8)
    except ValueError:
        return False
    return sum(block) - sum(block[148:156]) + 8 * 0x20 == stored


def _pax(data: bytes) -> dict[str, str]:
    records = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or int(length) <= len(length) + 1:
            break
        entry = data[len(length) + 1 : int(length) - 1]
        key, _, value = entry.partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return records


def _blocks(fd: int, position: int, total: int) -> Iterator[tuple[int, bytes]]:
    while position + BLOCK <= total:
        data = os.pread(fd, min(_SCAN, total - position), position)
        if not data:
            return
        for start in range(0, len(data) - BLOCK + 1, BLOCK):
            yield position + start, data[start : start + BLOCK]
        position += len(data) // BLOCK * BLOCK


def _next_nonzero(fd: int, position: int, total: int) -> int:
    for at, block in _blocks(fd, position, total):
        if block.count(0) != BLOCK:
            return at
    return total


def _find_header(fd: int, position: int, total: int) -> int:
    for at, block in _blocks(fd, position, total):
        if block[257:262] == b"ustar" and _is_header(block):
            return at
    return total
