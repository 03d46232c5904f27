"""The header reader against tarfile, and where tarfile goes blind."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from clipkit.pairs.tar import BLOCK, read_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def contents(path: Path) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Names and bytes as read_members finds them, and the reasons of the damages."""
    members, damages = read_members(path)
    data = path.read_bytes()
    for damage in damages:
        assert 0 <= damage.start <= damage.stop <= len(data)
        assert damage.start < damage.stop or damage.start == len(data)
    return [(m.name, data[m.offset : m.offset + m.size]) for m in members], [d.reason for d in damages]


def by_tarfile(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar if m.isreg()]  # type: ignore[union-attr]


def body(n: int) -> bytes:
    return bytes((n + i) % 251 for i in range([0, 1, 511, 512, 513, 3000][n % 6]))


def names(kind: str) -> list[str]:
    common = ["000.jpg", "deep/er/001.png", "./002.txt", "a b.json", "p" * 98 + ".j", "x" * 100]
    long = ["d" * 90 + "/" + "e" * 60 + "/003.jpg"] if kind == "ustar" else ["l" * 180 + ".jpg", "größe-é-日本.png"]
    return common + long


@pytest.fixture
def plain(tmp_path: Path, write_tar: Callable[..., Path]) -> tuple[Path, list[tuple[str, bytes]]]:
    """Ten members of two blocks of data each, all headers ustar: header n is at block 3n."""
    members = [(f"{n:03d}.txt", bytes([65 + n]) * 700) for n in range(10)]
    return write_tar(tmp_path / "plain.tar", members, tarfile.USTAR_FORMAT), members


@pytest.mark.parametrize("kind", FORMATS)
def test_members_are_those_of_tarfile(tmp_path: Path, write_tar: Callable[..., Path], kind: str) -> None:
    members = [(name, body(n)) for n, name in enumerate(names(kind))]
    path = write_tar(tmp_path / "a.tar", members, FORMATS[kind])
    found, damages = contents(path)
    assert not damages
    assert found == members == by_tarfile(path)


def test_folders_links_and_pax_globals_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "für alle"}) as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("s", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "l" * 150
            tar.addfile(info)
        info = tarfile.TarInfo("d/a.jpg")
        info.size = 5
        info.pax_headers = {"SCHILY.xattr.user.x": "a=b\nc", "mtime": "1.5"}
        tar.addfile(info, io.BytesIO(b"bytes"))
    assert contents(path) == ([("d/a.jpg", b"bytes")], [])


def test_a_link_with_a_size_has_no_body(tmp_path: Path) -> None:
    """Some writers store the target's size in a link's header; tarfile knows that no data follows it."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname, link.size = tarfile.LNKTYPE, "elsewhere", 2 * BLOCK
        tar.addfile(link)
        info = tarfile.TarInfo("a.jpg")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"bytes"))
    assert by_tarfile(path) == [("a.jpg", b"bytes")]
    assert contents(path)[0] == [("a.jpg", b"bytes")]


def test_pax_size_and_base_256_size(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 700
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    base_256 = bytearray(header)
    base_256[124:136] = b"\x80" + (700).to_bytes(11, "big")
    base_256[148:156] = b" " * 8
    base_256[148:156] = f"{sum(base_256):06o}\0 ".encode()
    record = b"12 size=700\n"
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, len(record)
    small = tarfile.TarInfo("a.jpg")  # its own size field says 0
    data = bytes(700) + bytes(BLOCK * 2 - 700)
    end = bytes(2 * BLOCK)
    for n, blob in enumerate(
        (
            bytes(base_256) + data,
            pax.tobuf(tarfile.USTAR_FORMAT) + record.ljust(BLOCK, b"\0") + small.tobuf(tarfile.USTAR_FORMAT) + data,
        )
    ):
        path = tmp_path / f"{n}.tar"
        path.write_bytes(blob + end)
        assert by_tarfile(path) == [("a.jpg", bytes(700))]
        assert contents(path) == ([("a.jpg", bytes(700))], [])


Damager = Callable[[bytearray], None]


def _flip(data: bytearray) -> None:
    data[0] ^= 0x01  # a letter of the name: the checksum fails


def _noise(data: bytearray) -> None:
    data[:BLOCK] = random.Random(0).randbytes(BLOCK)


def _zeros(data: bytearray) -> None:
    data[:BLOCK] = bytes(BLOCK)


def _ones(data: bytearray) -> None:
    data[:BLOCK] = b"\xff" * BLOCK


def _size_is_no_number(data: bytearray) -> None:
    data[124:136] = b"zzzzzzzzzzz\0"
    _sign(data)


def _size_past_the_end(data: bytearray) -> None:
    data[124:136] = b"77777777777\0"
    _sign(data)


def _size_huge_base_256(data: bytearray) -> None:
    data[124:136] = b"\xff" * 12
    _sign(data)


def _sign(data: bytearray) -> None:
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:BLOCK]):06o}\0 ".encode()


@pytest.mark.parametrize(
    "damage", [_flip, _noise, _zeros, _ones, _size_is_no_number, _size_past_the_end, _size_huge_base_256]
)
@pytest.mark.parametrize("which", [0, 4, 9])
def test_a_damaged_header_loses_its_member_only(
    plain: tuple[Path, list[tuple[str, bytes]]], damage: Damager, which: int
) -> None:
    path, members = plain
    data = bytearray(path.read_bytes())
    at = 3 * BLOCK * which
    block = data[at : at + BLOCK]
    damage(block)
    data[at : at + BLOCK] = block
    path.write_bytes(data)
    found, damages = contents(path)
    assert found == members[:which] + members[which + 1 :]
    assert damages, "the loss was not reported"


@pytest.mark.parametrize("kind", ["pax", "gnu"])
@pytest.mark.parametrize("damage", [_flip, _zeros, _size_is_no_number, _size_past_the_end, _size_huge_base_256])
def test_a_damaged_extended_header_is_reported_and_the_rest_read(
    tmp_path: Path, write_tar: Callable[..., Path], kind: str, damage: Damager
) -> None:
    members = [(f"{n}" * 150 + ".jpg", bytes([65 + n]) * 700) for n in range(4)]
    path = write_tar(tmp_path / "a.tar", members, FORMATS[kind])
    data = bytearray(path.read_bytes())
    at = 5 * BLOCK  # extended header, its body, header, two blocks of data: that of member 1
    assert data[at + 156 : at + 157] in b"xL"
    block = data[at : at + BLOCK]
    damage(block)
    data[at : at + BLOCK] = block
    path.write_bytes(data)
    found, damages = contents(path)
    assert damages, "the loss was not reported"
    assert [f for f in found if f in members] == [members[0], *members[2:]]


def test_a_pax_body_of_nonsense_is_survived(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    members = [(f"{n}" * 150 + ".jpg", bytes([65 + n]) * 700) for n in range(3)]
    path = write_tar(tmp_path / "a.tar", members, tarfile.PAX_FORMAT)
    good = path.read_bytes()
    for body_of_1 in (
        b"14 size=lots!\n",
        b"11 size=-9\n",
        b"99999999999 size=1\n",
        b"0 =\n",
        b"\xff\xfe",
        b"7 size\n",
        b"9 path=\n\n",
        random.Random(1).randbytes(BLOCK),
    ):
        data = bytearray(good)
        data[6 * BLOCK : 7 * BLOCK] = body_of_1.ljust(BLOCK, b"\0")
        path.write_bytes(data)
        found, _ = contents(path)
        assert members[0] in found and members[2] in found, body_of_1


def test_cut_anywhere_nothing_is_lost_in_silence(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    members = [(f"{n}" * (150 if n % 2 else 10) + ".jpg", bytes([65 + n]) * 700) for n in range(4)]
    for kind in ("ustar", "pax", "gnu"):
        chosen = members if kind != "ustar" else [(f"{n}.jpg", data) for n, (_, data) in enumerate(members)]
        path = write_tar(tmp_path / "a.tar", chosen, FORMATS[kind])
        whole = path.read_bytes()
        last = max(m.offset + (m.size + BLOCK - 1) // BLOCK * BLOCK for m in read_members(path)[0])
        for stop in [n for edge in range(BLOCK, last + 1, BLOCK) for n in (edge - 300, edge - 1, edge)]:
            path.write_bytes(whole[:stop])
            found, damages = contents(path)
            assert found == chosen[: len(found)], (kind, stop)
            assert damages, f"{kind} cut at {stop}: a member is gone and nobody says so"
        path.write_bytes(whole[: last + BLOCK])
        assert contents(path) == (chosen, [])


def test_zeroed_samples_in_the_middle_are_reported(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    members = [(f"{n}.txt", bytes([65 + n]) * 1200) for n in range(8)]  # four blocks each
    path = write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[8 * BLOCK : 16 * BLOCK] = bytes(8 * BLOCK)
    path.write_bytes(data)
    found, reasons = contents(path)
    assert found == members[:2] + members[4:]
    assert reasons == ["zeros where a tar header should be"]


def test_a_zeroed_member_does_not_give_its_long_name_to_the_next(
    tmp_path: Path, write_tar: Callable[..., Path]
) -> None:
    members = [("l" * 150 + ".txt", b"a" * 700), ("short.txt", b"b" * 700)]
    path = write_tar(tmp_path / "a.tar", members, tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    data[2 * BLOCK : 5 * BLOCK] = bytes(3 * BLOCK)  # behind the long name: header and body
    path.write_bytes(data)
    assert contents(path) == (members[1:], ["zeros where a tar header should be"])


@pytest.mark.parametrize("padded", [(True, True), (False, True), (True, False), (False, False)])
def test_concatenated_tars_of_writers_that_pad_and_that_do_not(
    tmp_path: Path, write_tar: Callable[..., Path], padded: tuple[bool, bool]
) -> None:
    members = [(f"{n}.txt", bytes([65 + n]) * 700) for n in range(3)]
    whole = b""
    for which, pad in enumerate((*padded, True)):
        one = write_tar(tmp_path / "one.tar", [members[which]], tarfile.USTAR_FORMAT).read_bytes()
        whole += one if pad else one[: 5 * BLOCK]  # three blocks of a member and two that end it
    path = tmp_path / "a.tar"
    path.write_bytes(whole)
    assert contents(path) == (members, [])


def test_webdataset_writes_tars_that_are_not_reported(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    for n in (1, 3, 40):
        with webdataset.TarWriter(str(tmp_path / f"{n}.tar")) as writer:
            for at in range(n):
                writer.write({"__key__": f"{at:03d}", "txt": f"caption {at}"})
        found, damages = contents(tmp_path / f"{n}.tar")
        assert len(found) == n and not damages


def test_pax_records_that_bite(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    """Lengths of thousands of digits, digits that int() does not know, and a megabyte of records in linear time."""
    good = write_tar(tmp_path / "good.tar", [("a.txt", b"a")], tarfile.USTAR_FORMAT).read_bytes()
    for records in (
        b"9" * 5000 + b" path=b\n",
        "11 size=²\n".encode(),
        b"5010 size=" + b"9" * 4999 + b"\n",
        b"6 a=b\n" * 200_000,
    ):
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, len(records)
        path = tmp_path / "a.tar"
        path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % BLOCK) + good)
        assert contents(path) == ([("a.txt", b"a")], [])


def test_concatenated_tars_are_read_through(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    first = write_tar(tmp_path / "a.tar", [("a.jpg", b"1")], tarfile.PAX_FORMAT)
    second = write_tar(tmp_path / "b.tar", [("b" * 150 + ".jpg", b"2")], tarfile.GNU_FORMAT)
    path = tmp_path / "c.tar"
    path.write_bytes(first.read_bytes() + second.read_bytes() + first.read_bytes())
    assert contents(path) == ([("a.jpg", b"1"), ("b" * 150 + ".jpg", b"2"), ("a.jpg", b"1")], [])


def test_zeros_and_headers_inside_a_body_are_data(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    inner = write_tar(tmp_path / "inner.tar", [("inner.jpg", bytes(2000))], tarfile.USTAR_FORMAT).read_bytes()
    members = [("a.bin", inner), ("b.bin", bytes(5000)), ("c.bin", b"c")]
    path = write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
    assert contents(path) == (members, [])


def test_files_that_are_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for data in (b"short", b"x" * 5000, random.Random(2).randbytes(4 * BLOCK)):
        path.write_bytes(data)
        found, damages = contents(path)
        assert not found and damages
    path.write_bytes(b"")
    assert contents(path) == ([], [])
    path.write_bytes(bytes(20 * BLOCK))
    assert contents(path) == ([], [])


def test_a_header_behind_a_megabyte_of_damage_is_found(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    members = [("a.bin", bytes(3 << 20)), ("b.bin", b"b" * 600), ("c.bin", b"c")]
    path = write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[:BLOCK] = b"\xff" * BLOCK
    path.write_bytes(data)
    found, damages = contents(path)
    assert found == members[1:] and damages
