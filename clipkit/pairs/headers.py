"""Many tar headers at a time: what numpy can see at once of a stretch of small members.

Only what is beyond doubt is taken here: headers whose magic and checksum hold, whose size is written in the usual way,
and each of which lies exactly where the one before it says. Everything else is left to ``tar.scan_members``, which
looks at one header at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
_USTAR, _USTAR_AT = b"ustar", 257
_PAX = ord("x")
_IN_RUNS = np.zeros(256, dtype=np.bool_)  # type flags of regular files and of PAX records
_IN_RUNS[[0, ord("0"), ord("7"), _PAX]] = True
_POWERS_OF_8 = 8 ** np.arange(10, -1, -1, dtype=np.int64)


class Run(NamedTuple):
    """Members that lie one behind the other: names, int64 places of their bodies and sizes, and where the run ends."""

    names: list[str]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    end: int


_NOTHING = Run([], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 0)


def plain_run(data: bytes) -> Run:
    """The longest chain of plain members from the first byte of ``data`` on.

    A PAX header that names or sizes its member ends the run; one that tells something else (times) is passed over.
    The last header of ``data`` is never taken, as nothing there says whether the next one lies where it should.
    """
    blocks = np.frombuffer(data, dtype=np.uint8, count=len(data) // BLOCK * BLOCK).reshape(-1, BLOCK)
    if not len(blocks):
        return _NOTHING
    magic: Any = np.ndarray(len(blocks), dtype="S5", buffer=data, offset=_USTAR_AT, strides=(BLOCK,))
    places = np.flatnonzero(magic == _USTAR)
    if len(places) < 2 or places[0] != 0:
        return _NOTHING
    headers = blocks[places]
    sizes, plain = _plain(headers)
    after = places + 1 + (sizes + BLOCK - 1) // BLOCK
    linked = plain[:-1] & plain[1:] & (after[:-1] == places[1:])
    length = int(np.argmin(linked)) if not linked.all() else len(linked)
    is_pax = headers[:length, 156] == _PAX
    offsets = (places[:length] + 1) * BLOCK
    pax = np.flatnonzero(is_pax)
    longest = int(sizes[pax].max(initial=0))
    if longest > BLOCK or _names_or_sizes(blocks[places[pax] + 1, :longest].tobytes()):
        for at in pax.tolist():
            if _names_or_sizes(data[offsets[at] : offsets[at] + sizes[at]]):
                length = at
                break
    if not length:
        return _NOTHING
    kept = np.flatnonzero(~is_pax[:length])
    names = np.ascontiguousarray(headers[kept, :100]).view("S100")[:, 0].tolist()
    return Run(_decoded(names), offsets[kept], sizes[kept], int(after[length - 1]) * BLOCK)


def _names_or_sizes(records: bytes) -> bool:
    """Whether PAX records may give a member another name or size than its header does."""
    return b"path=" in records or b"size=" in records


def _decoded(names: list[bytes]) -> list[str]:
    joined = b"\n".join(names)
    if b"\0" in joined or joined.count(b"\n") > max(0, len(names) - 1):  # bytes behind a name's end, or a line in one
        return [name.partition(b"\0")[0].decode("utf-8", "surrogateescape") for name in names]
    return joined.decode("utf-8", "surrogateescape").split("\n") if names else []


def _plain(headers: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Sizes of headers (n, 512), and which of them are written as every usual writer does and are undamaged."""
    digits = headers[:, 124:135] - np.uint8(48)
    sizes = digits.astype(np.int64) @ _POWERS_OF_8
    stored = headers[:, 148:156]
    check = stored[:, :7] - np.uint8(48)
    has_seven = check[:, 6] < 8
    six = check[:, :6].astype(np.int64) @ _POWERS_OF_8[5:]
    told = np.where(has_seven, 8 * six + check[:, 6], six)
    sums = headers.sum(axis=1, dtype=np.uint32).astype(np.int64) - stored.sum(axis=1, dtype=np.int64) + 8 * 0x20
    plain = (digits < 8).all(axis=1) & (check[:, :6] < 8).all(axis=1) & (told == sums)
    plain &= _IN_RUNS[headers[:, 156]]
    plain &= headers[:, 345] == 0  # a name in two parts
    return np.where(plain, sizes, 0), plain
