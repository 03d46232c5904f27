"""Members of a tar file, by reading its headers only.

Python's ``tarfile`` ends silently at a damaged header, and everything behind it is lost without a word. Here a
damaged header is reported and the walk goes on at the next block that is a header (its magic is ``ustar`` and its
checksum holds).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import adler32

from clipkit.pairs.headers import BLOCK, plain_run

AHEAD = 1 << 14  # mean distance of headers below which a whole stretch is read for them
STRETCH = 1 << 20  # bytes of such a stretch
_REGULAR = (b"0", b"\0", b"7")
_EXTENDED = (b"x", b"g", b"L", b"K")  # PAX records and GNU long names: they speak of the next member
_BODILESS = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders: no body follows, whatever their size says
_SCAN = 1 << 20  # bytes read at a time while looking for the next header
_ZEROS = bytes(BLOCK)
_RECORD = 20 * BLOCK  # tarfile, webdataset and GNU tar pad an archive to a multiple of this
_DIGITS = 20  # of the longest number in a PAX record

Read = Callable[[int, int], bytes]
"""(offset, size) -> bytes of a file; fewer only at its end."""


class Member(NamedTuple):
    """A regular file in a tar: its name and where its bytes lie."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Members:
    """Members in file order, as columns: a million small objects would cost more than all of the reading."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Member]:
        return map(Member, self.names, self.offsets, self.sizes)


class Damage(NamedTuple):
    """Bytes [start, stop) of a tar that could not be understood, and why; no bytes where its end is missing."""

    start: int
    stop: int
    reason: str


def read_members(path: str | os.PathLike[str]) -> tuple[Members, list[Damage]]:
    """``scan_members`` of the file at ``path``."""
    with open(path, "rb", buffering=0) as file:
        fd = file.fileno()
        return scan_members(lambda offset, size: os.pread(fd, size, offset), os.fstat(fd).st_size)


def scan_members(read: Read, total: int, ahead: int = AHEAD, stretch: int = STRETCH) -> tuple[Members, list[Damage]]:
    """All regular members of a tar of ``total`` bytes and every damaged stretch, in file order.

    Understands ustar with prefix, PAX ``path`` and ``size`` records, and GNU long names. Zero blocks end the archive.
    What follows them is read too: it is another archive (concatenated tars) where it begins as far behind as writers
    pad, and otherwise the zeros are reported, as samples may have been there. An archive without zero blocks at its end
    is reported as well: it may have been cut short.

    Args:
        read: gives the tar's bytes.
        ahead: where headers lie closer together than this on average, they are read and understood many at a time.
        stretch: bytes that are then read at once.
    """
    members = Members()
    damages: list[Damage] = []
    position = extended = base = count = archive = 0
    is_open = False  # whether the last thing seen is a member, behind which an end mark should come
    buffer = b""
    long_name: str | None = None
    pax: dict[str, str] = {}
    while position + BLOCK <= total:
        at = position - base
        if not 0 <= at <= len(buffer) - BLOCK:
            near = position < ahead * (count + 1)
            buffer, base, at = read(position, min(stretch if near else BLOCK, total - position)), position, 0
            if near and long_name is None and not pax:
                run = plain_run(buffer)
                if run.end:
                    members.names.extend(run.names)
                    members.offsets.extend((run.offsets + base).tolist())
                    members.sizes.extend(run.sizes.tolist())
                    count += len(run.names)
                    position, is_open = position + run.end, True
                    continue
        header = buffer[at : at + BLOCK]
        count += 1
        if header == _ZEROS:
            after = _next_nonzero(read, position, total)
            is_open = False
            if after < total:
                if long_name is None and not pax and _is_end_mark(position, after, archive):
                    archive = after
                else:
                    damages.append(Damage(position, after, "zeros where a tar header should be"))
                long_name, pax = None, {}
            position = after
            continue
        size = _size(header) if _is_header(header) else None
        if size is None:
            found = _find_header(read, position + BLOCK, total)
            damages.append(Damage(position, found, "not a tar header"))
            position, long_name, pax, is_open = found, None, {}, False
            continue
        kind = header[156:157]
        body = position + BLOCK
        if kind in _BODILESS:
            size = 0
        elif kind not in _EXTENDED and _is_number(told := pax.get("size", "")):
            size = int(told)
        if body + size > total:
            # A header inside the claimed body means that the size is wrong; otherwise the file was cut short.
            found = _find_header(read, body, total)
            damages.append(Damage(position, found, f"{_name(header)}: {size} bytes go past the end of the file"))
            position, long_name, pax, is_open = found, None, {}, False
            continue
        if kind in _EXTENDED:
            extended = position
            data = read(body, size)
            if kind == b"L":
                long_name = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif kind == b"x":
                pax = _pax(data)
            position = body + _padded(size)
            continue
        if kind in _REGULAR:
            members.names.append(pax.get("path") or long_name or _name(header))
            members.offsets.append(body)
            members.sizes.append(size)
        position, long_name, pax, is_open = body + _padded(size), None, {}, True
    if position != total:
        damages.append(Damage(total // BLOCK * BLOCK, total, "the file ends inside a block"))
    elif long_name is not None or pax:
        damages.append(Damage(extended, total, "the file ends between an extended header and its member"))
    elif is_open:
        damages.append(Damage(total, total, "the file ends without an end mark, it may have been cut short"))
    return members, damages


def _is_end_mark(start: int, stop: int, archive: int) -> bool:
    """Whether zeros [start, stop) between two archives, the first of which begins at ``archive``, are what a writer
    puts there: two blocks, and padding to whole records from most writers."""
    return stop - start == 2 * BLOCK or (stop - start > 2 * BLOCK and (stop - archive) % _RECORD == 0)


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[345] and header[257:263] == b"ustar\0":
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _size(header: bytes) -> int | None:
    if header[124] & 0x80:  # base 256, for members of 8 GiB and more
        return int.from_bytes(bytes([header[124] & 0x7F]) + header[125:136], "big")
    try:
        size = int(header[124:136].strip(b"\0 ") or b"0", 8)
    except ValueError:
        return None
    return size if size >= 0 else None


def _is_header(block: bytes) -> bool:
    """Whether the block's checksum holds: the sum of its bytes, with its own eight taken for spaces."""
    field = block[148:156]
    try:
        stored = int(field.strip(b"\0 "), 8)
    except ValueError:
        return False
    # The low half of Adler-32 is 1 + the sum of the bytes, modulo 65521, and ten times as fast as sum().
    return adler32(block) & 0xFFFF == (1 + stored + sum(field) - 8 * 0x20) % 65521


def _is_number(text: str | bytes) -> bool:
    """Whether ``text`` is a decimal number of a length that a tar may have; not all that ``isdigit`` takes for one."""
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


def _pax(data: bytes) -> dict[str, str]:
    records = {}
    at = 0
    while (space := data.find(b" ", at, at + _DIGITS + 1)) >= 0:
        length = data[at:space]
        if not _is_number(length) or int(length) <= len(length) + 1:
            break
        key, _, value = data[space + 1 : at + int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += int(length)
    return records


def _blocks(read: Read, position: int, total: int) -> Iterator[tuple[int, bytes]]:
    while position + BLOCK <= total:
        data = read(position, min(_SCAN, total - position))
        if not data:
            return
        for start in range(0, len(data) - BLOCK + 1, BLOCK):
            yield position + start, data[start : start + BLOCK]
        position += len(data) // BLOCK * BLOCK


def _next_nonzero(read: Read, position: int, total: int) -> int:
    for at, block in _blocks(read, position, total):
        if block.count(0) != BLOCK:
            return at
    return total


def _find_header(read: Read, position: int, total: int) -> int:
    for at, block in _blocks(read, position, total):
        if block[257:262] == b"ustar" and _is_header(block):
            return at
    return total
