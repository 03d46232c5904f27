"""Many headers at a time find what one at a time finds, in tars of every kind, whole and damaged."""

from __future__ import annotations

import io
import random
import tarfile

import pytest

from clipkit.pairs.headers import plain_run
from clipkit.pairs.tar import BLOCK, scan_members


def scan(data: bytes, ahead: int) -> tuple[list[tuple[str, int, int]], list[tuple[int, int, str]]]:
    members, damages = scan_members(lambda offset, size: data[offset : offset + size], len(data), ahead)
    return [tuple(m) for m in members], [tuple(d) for d in damages]


def make(members: list[tuple[str, bytes]], format: int, **of_each: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in of_each.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def many(n: int = 400) -> list[tuple[str, bytes]]:
    draw = random.Random(n)
    return [(f"{i:06d}.{e}", draw.randbytes(draw.choice([0, 1, 511, 512, 900]))) for i in range(n) for e in ("j", "t")]


KINDS = {
    "ustar": (tarfile.USTAR_FORMAT, {}),
    "gnu": (tarfile.GNU_FORMAT, {}),
    "pax": (tarfile.PAX_FORMAT, {}),
    "times": (tarfile.PAX_FORMAT, {"mtime": 1700000000.25}),  # as webdataset writes: a PAX record for every member
    "sizes": (tarfile.PAX_FORMAT, {"pax_headers": {"comment": "size=3"}}),
    "long records": (tarfile.PAX_FORMAT, {"pax_headers": {"comment": "x" * 700}}),
    "names behind long records": (tarfile.PAX_FORMAT, {"pax_headers": {"comment": "x" * 700, "path": "another.jpg"}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_those_of_tarfile(kind: str) -> None:
    format, fields = KINDS[kind]
    data = make(many(), format, **fields)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        theirs = [(m.name, m.offset_data, m.size) for m in tar]
    assert scan(data, 1 << 14) == (theirs, []) == scan(data, -1)


@pytest.mark.parametrize("kind", ["ustar", "gnu", "times", "long records"])
def test_a_run_takes_all_but_the_last(kind: str) -> None:
    data = make(many(), KINDS[kind][0], **KINDS[kind][1])
    run = plain_run(data)
    assert len(run.names) == 799 and len(run.offsets) == len(run.sizes) == 799
    assert run.end == scan(data, -1)[0][-1][1] - BLOCK


def test_special_members_in_between() -> None:
    mixed = make(
        [
            *many(60),
            ("long/" * 40 + "a.jpg", b"x" * 700),
            *many(30),
            ("inner.tar", make(many(20), tarfile.USTAR_FORMAT)),
            ("p" * 120 + "/" + "q" * 60, b"y"),
            *many(30),
        ],
        tarfile.PAX_FORMAT,
    )
    for format in KINDS.values():
        data = make(many(20), format[0], **format[1]) + mixed + make([("é" * 30, b"z")] * 3, tarfile.GNU_FORMAT)
        assert scan(data, 1 << 14) == scan(data, -1)
        assert len(scan(data, 1 << 14)[0]) == 40 + 123 * 2 - 3 + 3


@pytest.mark.parametrize("odd", ["a\nb.jpg", "\n", "größe.jpg", "日本.jpg"])
def test_odd_names_among_plain_ones(odd: str) -> None:
    data = make([*many(5), (odd, b"x"), *many(5)], tarfile.GNU_FORMAT)
    assert scan(data, 1 << 14) == scan(data, -1)
    assert scan(data, 1 << 14)[0][10][0] == odd


def test_headers_inside_a_body_are_data() -> None:
    inner = make(many(20), tarfile.USTAR_FORMAT)
    data = make([*many(10), ("inner.tar", inner), *many(10)], tarfile.USTAR_FORMAT)
    assert scan(data, 1 << 14) == scan(data, -1)
    assert len(scan(data, 1 << 14)[0]) == 41


def test_a_name_behind_whose_end_something_is_left() -> None:
    data = bytearray(make(many(40), tarfile.USTAR_FORMAT))
    data[20:30] = b"leftovers!"
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:BLOCK]):06o}\0 ".encode()
    assert scan(bytes(data), 1 << 14) == scan(bytes(data), -1)
    assert scan(bytes(data), 1 << 14)[0][0][0] == "000000.j"


@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_every_sort_is_seen_alike(kind: str) -> None:
    format, fields = KINDS[kind]
    whole = make(many(25), format, **fields)
    draw = random.Random(0)
    lost = 0
    for _ in range(50):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(data) // BLOCK) * BLOCK
            how = draw.randrange(5)
            if how == 0:
                data[at : at + BLOCK] = bytes(BLOCK)
            elif how == 1:
                data[at : at + BLOCK] = draw.randbytes(BLOCK)
            elif how == 2:
                data[at + draw.randrange(BLOCK)] ^= 1 << draw.randrange(8)
            elif how == 3:
                del data[at : at + draw.randrange(1, 3 * BLOCK)]
            else:  # a size that lies, under a checksum that holds
                data[at + 124 : at + 136] = draw.choice([b"00000000000\0", b"00000004000\0", b"77777777777\0"])
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = f"{sum(data[at : at + BLOCK]):06o}\0 ".encode()
        fast = scan(bytes(data), 1 << 14)
        assert fast == scan(bytes(data), -1)
        lost += len(fast[0]) != 50
    assert lost > 15


def test_a_negative_size_ends_no_walk() -> None:
    data = bytearray(make(many(3), tarfile.USTAR_FORMAT))
    data[124:136] = b"-0000001000\0"
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:BLOCK]):06o}\0 ".encode()
    members, damages = scan(bytes(data), -1)
    assert len(members) == 5 and len(damages) == 1
