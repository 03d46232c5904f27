"""Shards as one sequence: indexes, captions, patterns, and what is said about mistakes."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import pickle
import random
import tarfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clipkit.errors import ClipkitError
from clipkit.pairs import ShardSet, open_shards, shards
from clipkit.pairs.index import load_index

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))


def sample(key: str, picture: bytes, **record: object) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", picture), (f"{key}.json", json.dumps(record).encode())]


def quietly(path: Path | str) -> ShardSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_shards(path)


def message(path: Path | str) -> str:
    with pytest.raises(ClipkitError) as caught:
        quietly(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_samples_come_back_as_written(tmp_path: Path, write_shards: Write, picture: Callable[..., bytes]) -> None:
    found = open_shards(write_shards(tmp_path / "s", 3, 4))
    assert len(found) == 12 and found.sizes == [4, 4, 4]
    for n, got in enumerate(found):
        assert (got.key, got.image_ext, got.captions) == (f"{n:06d}", "jpg", (f"{n} a", f"{n} b"))
        assert got.image == picture(n, (12, 10)) and got.meta == {"captions": [f"{n} a", f"{n} b"]}
        assert found.read_captions(n) == got.captions and found.key(n) == got.key
        assert found.where(n).endswith(f"{n // 4:06d}.tar/{n:06d}.jpg")
    for wrong in (-1, 12):
        with pytest.raises(IndexError):
            found.read(wrong)
    assert pickle.loads(pickle.dumps(found)).read(7).key == "000007"


def test_keys_end_at_the_first_dot_and_keep_their_folder(tmp_path: Path, write_tar: Write) -> None:
    parts = [
        ("./v1.0/000.JPG", b"a"), ("./v1.0/000.txt", b"one"), ("001.seg.png", b"mask"), ("001.jpeg", b"b"),
        ("001.txt", b"two"), (".hidden", b"x"), ("noextension", b"x"), ("._001.jpg", b"mac"),
        ("002.small.jpg", b"c"), ("002.small.txt", b"no picture for a reader of jpg and txt"),
    ]  # fmt: skip
    found = quietly(write_tar(tmp_path / "a.tar", parts))
    assert [s.key for s in found] == ["./v1.0/000", "001"]
    assert [s.image for s in found] == [b"a", b"b"] and found.read(0).image_ext == "jpg"


def test_members_that_are_not_adjacent_are_joined_and_reported(tmp_path: Path, write_tar: Write) -> None:
    parts = [("a.jpg", b"A"), ("b.jpg", b"B"), ("a.txt", b"of a"), ("b.txt", b"of b")]
    found = quietly(write_tar(tmp_path / "a.tar", parts))
    assert [(s.image, s.captions) for s in found] == [(b"A", ("of a",)), (b"B", ("of b",))]
    assert any("'a'" in p and "adjacent" in p for p in found.problems)


def test_incomplete_samples_are_left_out_and_reported(tmp_path: Path, write_tar: Write) -> None:
    parts = [("a.jpg", b"A"), ("b.txt", b"of b"), ("c.jpg", b"C"), ("c.txt", b"of c"), ("c.jpg", b"again")]
    with pytest.warns(UserWarning) as caught:
        found = open_shards(write_tar(tmp_path / "x.tar", parts))
    assert [(s.key, s.image) for s in found] == [("c", b"C")]
    said = " | ".join(str(w.message) for w in caught)
    assert all(word in said for word in ("'a'", "'b'", "c.jpg", "x.tar"))


def test_the_index_is_kept_and_used(tmp_path: Path, write_shards: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards(tmp_path / "s", 2, 3)
    first = open_shards(folder)
    with monkeypatch.context() as patch:
        patch.setattr("clipkit.pairs.index.read_members", lambda path: pytest.fail("the headers were read again"))
        again = open_shards(folder)
    assert again.fingerprint == first.fingerprint
    assert [s.captions for s in again] == [s.captions for s in first]


def test_the_index_is_rebuilt_when_the_tar_changes(tmp_path: Path, write_tar: Write) -> None:
    path = write_tar(tmp_path / "a.tar", [*sample("one", b"1", caption="one"), *sample("two", b"2", caption="two")])
    before = open_shards(path)
    assert [s.key for s in before] == ["one", "two"]
    write_tar(path, [*sample("uno", b"1", caption="one"), *sample("due", b"2", caption="two")])  # same size
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    after = open_shards(path)
    assert [s.key for s in after] == ["uno", "due"] and after.fingerprint != before.fingerprint


@pytest.mark.parametrize("junk", [b"", b"PK\x03\x04 cut off", b"not an index", b"\x93NUMPY\x01\x00"])
def test_a_damaged_index_is_built_again(tmp_path: Path, write_shards: Write, junk: bytes) -> None:
    folder = write_shards(tmp_path / "s", 1, 3)
    before = [s.captions for s in open_shards(folder)]
    (index,) = [p for p in folder.iterdir() if p.suffix != ".tar"]
    index.write_bytes(junk)
    assert [s.captions for s in open_shards(folder)] == before


def test_an_index_with_any_wrong_byte_is_built_again(tmp_path: Path, write_shards: Write) -> None:
    """zipfile and numpy have many ways to fail: none of them may stop a run."""
    path = write_shards(tmp_path / "s", 1, 3) / "000000.tar"
    before = load_index(path)
    place = path.with_name("000000.tar.index.npz")
    whole, draw = place.read_bytes(), random.Random(0)
    cut = [whole[:n] for n in range(0, len(whole), 97)]
    flipped = [(at, 1 << draw.randrange(8)) for at in draw.sample(range(len(whole)), 300)]
    for data in [*cut, *(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :] for at, bit in flipped)]:
        place.write_bytes(data)
        after = load_index(path)
        assert after.keys == before.keys and after.fingerprint == before.fingerprint


def test_a_new_index_does_not_wait_for_the_disk(
    tmp_path: Path, write_shards: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: pytest.fail("an index can be built again"))
    assert len(open_shards(write_shards(tmp_path / "s", 1, 3))) == 3
    assert (tmp_path / "s" / "000000.tar.index.npz").is_file()


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, write_shards: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(tmp_path / "s", 1, 3)
    # a folder in the index's place: it can be neither read nor replaced, by root either
    (folder / "000000.tar.index.npz").mkdir()
    folder.chmod(0o555)
    try:
        first = open_shards(folder)
        with monkeypatch.context() as patch:
            patch.setattr("clipkit.pairs.index.read_members", lambda path: pytest.fail("the cached index was not used"))
            assert open_shards(folder).fingerprint == first.fingerprint
        assert sorted(p.name for p in folder.iterdir()) == ["000000.tar", "000000.tar.index.npz"]
        monkeypatch.setenv("CLIPKIT_CACHE", "/proc/no/such/place")  # nowhere to write at all
        assert len(open_shards(folder)) == 3
    finally:
        folder.chmod(0o755)


def test_the_fingerprint_tells_data_apart(tmp_path: Path, write_shards: Write) -> None:
    a, b, c = (write_shards(tmp_path / name, n, k) for name, n, k in (("a", 2, 3), ("b", 2, 3), ("c", 3, 2)))
    assert open_shards(a).fingerprint == open_shards(b).fingerprint != open_shards(c).fingerprint


def test_names_that_are_no_utf8(tmp_path: Path, write_tar: Write, picture: Callable[..., bytes]) -> None:
    """A folder, a shard and a key of a file system that writes Latin-1."""
    shard = tmp_path / "caf\udce9" / "\udce9.tar"
    write_tar(shard, [("\udce9.jpg", picture()), ("\udce9.txt", b"a cup")], tarfile.GNU_FORMAT)
    for _ in range(2):  # the second reads the index that the first has kept
        found = open_shards(shard.parent)
        assert found.key(0) == "\udce9" and found.read_captions(0) == ("a cup",)
    write_tar(tmp_path / "plain" / "\udcea.tar", [("\udce9.jpg", picture()), ("\udce9.txt", b"a cup")])
    assert found.fingerprint != open_shards(tmp_path / "plain").fingerprint


def test_the_fingerprint_of_ordinary_names_stays(tmp_path: Path, write_shards: Write) -> None:
    """A checkpoint knows its data by it."""
    (found,) = open_shards(write_shards(tmp_path / "s", 1, 2)).shards
    joined = ShardSet([replace(found, path=Path("größe 猫.tar"), fingerprint="0")], "")
    assert joined.fingerprint == hashlib.blake2b("größe 猫.tar 0".encode(), digest_size=16).hexdigest()


def test_patterns(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 12, 2)
    assert [p.stem for p in shards.shard_paths(folder)] == [f"{n:06d}" for n in range(12)]
    assert len(open_shards(f"{folder}/{{000002..000004}}.tar")) == 6
    assert len(open_shards(f"{folder}/{{000002,000007}}.tar")) == 4
    assert [p.stem for p in shards.shard_paths(f"{folder}/0000{{11,0[23]}}.t*")] == ["000011", "000002", "000003"]
    assert "00009*.tar: no file matches" in message(f"{folder}/{{00000*,00009*}}.tar")
    assert len(open_shards(f"{folder}/00000?.tar")) == 20
    assert len(open_shards(f"{folder}/00001[01].tar")) == 4
    assert len(open_shards(folder / "000003.tar")) == 2
    assert open_shards(f"{folder}/*.tar").fingerprint == open_shards(folder).fingerprint


def test_a_glob_over_everything_skips_the_indexes(tmp_path: Path, write_shards: Write) -> None:
    """The second run must not take the index that the first one has put beside the shard for a shard."""
    folder = write_shards(tmp_path / "s", 2, 2)
    assert len(open_shards(f"{folder}/*")) == 4
    assert len(open_shards(f"{folder}/*")) == 4


@pytest.mark.parametrize("name", ["photos [2023]", "a{b,c}", "what?", "10 * 10"])
def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path, write_shards: Write, name: str) -> None:
    assert len(open_shards(write_shards(tmp_path / name, 1, 2))) == 2
    assert len(open_shards(tmp_path / name / "000000.tar")) == 2


def test_mistakes_name_the_file_and_the_fix(tmp_path: Path, write_shards: Write, write_tar: Write) -> None:
    folder = write_shards(tmp_path / "s", 2, 2)
    assert "nowhere" in message(tmp_path / "nowhere")
    said = message(f"{folder}/{{000000..000003}}.tar")
    assert "000002.tar" in said and "2 of 4" in said
    assert "z*.tar" in message(f"{folder}/z*.tar")
    (tmp_path / "empty").mkdir()
    said = message(tmp_path / "empty")
    assert "empty" in said and ".tar" in said
    for data, words in ((b"", ["zero.tar", "empty"]), (b"garbage" * 1000, ["zero.tar", "not a tar"])):
        (tmp_path / "zero.tar").write_bytes(data)
        said = message(tmp_path / "zero.tar")
        assert all(word in said for word in words)
    said = message(write_tar(tmp_path / "nopair.tar", [("a.jpg", b"x"), ("b.txt", b"y")]))
    assert "nopair.tar" in said and ".txt" in said and ".jpg" in said
    said = message(write_tar(tmp_path / "nothing.tar", []))
    assert "nothing.tar" in said
    assert "an address without a place" in message("http://") and "an address without a place" in message("s3:///")
    (folder / "._000000.tar").write_bytes(b"of macOS")
    assert len(open_shards(folder)) == 4
    (folder / "000002.tar").symlink_to(tmp_path / "gone.tar")
    for path in (folder, f"{folder}/0*.tar"):
        said = message(path)
        assert "000002.tar: a link to" in said and "gone.tar" in said
    (folder / "000002.tar").unlink()
    (folder / "000002.tar").mkdir()
    assert "000002.tar: a folder and not a tar" in message(folder)


def test_a_shard_cut_after_indexing_is_noticed(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 1, 3)
    found = open_shards(folder)
    path = folder / "000000.tar"
    os.truncate(path, found.shards[0].spans[1, 0, 0] + 100)
    assert found.read(0).key == "000000"
    with pytest.raises(ClipkitError, match=r"000000\.tar"):
        found.read(1)
    with pytest.raises(ClipkitError, match=r"000000\.tar"):
        found.read_captions(2)


def test_samples_behind_a_damaged_header_are_read_and_the_loss_is_told(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 1, 6)
    path = folder / "000000.tar"
    start = int(open_shards(folder).shards[0].spans[2, 0, 0]) - 512
    data = bytearray(path.read_bytes())
    data[start : start + 512] = b"\xff" * 512
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged"):
        found = open_shards(folder)
    assert [s.key for s in found] == [f"{n:06d}" for n in (0, 1, 3, 4, 5)]
    assert any("000000.tar" in p and "damaged" in p for p in found.problems)
    again = quietly(folder)
    assert again.problems == found.problems, "the stored index has forgotten the damage"


def test_a_compressed_tar_is_told(tmp_path: Path, write_shards: Write) -> None:
    plain = next(write_shards(tmp_path / "s", 1, 4).glob("*.tar"))
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        (tmp_path / "packed.tar").write_bytes(compress(plain.read_bytes()))
        assert "packed.tar: a compressed tar, in which no sample can be looked up; unpack" in message(
            tmp_path / "packed.tar"
        )


def test_many_problems_are_counted(tmp_path: Path, write_tar: Write, picture: Callable[..., bytes]) -> None:
    for n in range(3):
        members = [("good.jpg", picture(0)), ("good.txt", b"a"), *((f"k{i}.txt", b"a") for i in range(4))]
        write_tar(tmp_path / f"{n}.tar", [*members, *((f"key.{i}.txt", b"a") for i in range(30))])
    with pytest.warns(UserWarning, match=r"10 more problems; 3 of 3 shards have some; `clipkit doctor` lists them"):
        found = open_shards(tmp_path)
    assert "and 24 more: a key ends at the first dot of the name" in found.problems[4]
