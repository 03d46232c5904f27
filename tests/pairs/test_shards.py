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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import ClipkitError
from clipkit.pairs import ShardSet, open_shards, shards
from clipkit.pairs.index import load_index
from clipkit.pairs.remote import UnreachableError

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


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"json": {"captions": ["a  red\n bird", "", "  ", "two"]}}, ("a red bird", "two")),
        ({"json": {"captions": "just one"}}, ("just one",)),
        ({"json": {"caption": "just one"}}, ("just one",)),
        ({"txt": "just one\n"}, ("just one",)),
        ({"txt": "", "json": {"caption": "from json"}}, ("from json",)),
        ({"txt": "from txt", "json": {"label": "x"}}, ("from txt",)),
        ({"txt": "from txt", "json": {"captions": ["from", "json"]}}, ("from", "json")),
        ({"txt": "größe é 日本"}, ("größe é 日本",)),
        ({"json": {"captions": ["a", None, 3, "b"]}}, ("a", "b")),
        ({"txt": "a cafÃ© &amp; a bar, itâ€™s"}, ("a café & a bar, it's",)),
        ({"txt": "salt &amp;amp; pepper < 3 & &nbsp; more"}, ("salt & pepper < 3 & more",)),
        ({"json": {"captions": ["&nbsp;", "x"]}}, ("x",)),
        ({"json": {"captions": []}}, ()),
        ({"json": {"label": "x"}}, ()),
    ],
)
def test_captions_in_every_form(
    tmp_path: Path, write_tar: Write, members: dict[str, object], captions: tuple[str, ...]
) -> None:
    parts = [("k.png", b"picture")]
    parts += [
        (f"k.{e}", v.encode() if isinstance(v, str) else json.dumps(v, ensure_ascii=False).encode())
        for e, v in members.items()
    ]
    found = quietly(write_tar(tmp_path / "a.tar", parts))
    assert found.read(0).captions == found.read_captions(0) == captions


@pytest.mark.parametrize(
    "record", [b"{", b"[1, 2]", b'"text"', b"\xff\xfe{}", b'{"captions": 5}', b'{"captions": true}']
)
def test_a_bad_record_is_an_error_that_names_it(tmp_path: Path, write_tar: Write, record: bytes) -> None:
    found = quietly(write_tar(tmp_path / "a.tar", [("k7.jpg", b"x"), ("k7.json", record)]))
    try:
        captions = found.read_captions(0)
    except ClipkitError as error:
        assert "k7" in str(error) and "a.tar" in str(error) and "json" in str(error)
    else:
        assert captions == ()


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


def test_json_that_is_nested_too_deeply_is_an_error_that_names_its_sample(tmp_path: Path, write_tar: Write) -> None:
    for record in (b"[" * 200_000, b'{"caption": "a", "x": ' + b"[" * 200 + b"]" * 200 + b"}"):
        path = write_tar(tmp_path / "a.tar", [("k.jpg", b"x"), ("k.json", record)])
        with pytest.raises(ClipkitError, match=r"a.tar/k.jpg: its .json is not valid JSON, or nested too deeply"):
            open_shards(path).read(0)
        path.unlink()
    many = json.dumps({"caption": "a", "boxes": [[1, 2, 3, 4]] * 300}).encode()
    assert open_shards(write_tar(tmp_path / "b.tar", [("k.jpg", b"x"), ("k.json", many)])).read_captions(0) == ("a",)


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


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_closed_sets_give_their_files_back(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 4, 1)

    def read_all() -> None:
        assert len(list(open_shards(folder))) == 4

    read_all()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        read_all()
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_threads_that_read_more_shards_than_may_be_open_get_their_own_bytes(
    write_shards: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open file that makes room for another may be in use by another thread, and its number is given out again."""
    monkeypatch.setattr("clipkit.pairs.files._OPEN_FILES", 2)
    shards = open_shards(write_shards(tmp_path / "shards", 12, 3))
    expected = [shards.read_captions(i) for i in range(len(shards))]
    assert expected == [(f"{i} a", f"{i} b") for i in range(36)]
    wanted = np.random.default_rng(0).integers(0, 36, 6000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: shards.read_record(i)[1], wanted)) == [expected[i] for i in wanted]


def test_a_compressed_tar_is_told(tmp_path: Path, write_shards: Write) -> None:
    plain = next(write_shards(tmp_path / "s", 1, 4).glob("*.tar"))
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        (tmp_path / "packed.tar").write_bytes(compress(plain.read_bytes()))
        assert "packed.tar: a compressed tar, in which no sample can be looked up; unpack" in message(
            tmp_path / "packed.tar"
        )


def test_a_process_that_may_open_few_files_reads_all_the_same(tmp_path: Path, write_shards: Write) -> None:
    """Files that are open make room; where none is, the run stops, as another sample would fare no better."""
    resource = pytest.importorskip("resource")
    found = open_shards(write_shards(tmp_path / "s", 40, 1))
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 8, limits[1]))
        assert [s.captions[0] for s in found] == [f"{n} a" for n in range(40)]
        found.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        with pytest.raises(UnreachableError, match=r"000003\.jpg: cannot be read \(Too many open files\).*ulimit -n"):
            found.read(3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_txt_holds_a_caption_a_line_as_in_a_folder(
    tmp_path: Path, write_tar: Write, picture: Callable[..., bytes]
) -> None:
    texts = {
        "0": "a dog\r\n\n a  cat\none\u2028line\n".encode(),
        "1": "\ufeffÄpfel\nBirnen".encode("utf-16-le"),
        "2": "\ufeffÄpfel".encode(),
        "3": "Äpfel".encode("latin-1"),
    }
    members = [(f"{key}.{ext}", data) for key in texts for ext, data in (("jpg", picture(0)), ("txt", texts[key]))]
    found = open_shards(write_tar(tmp_path / "0.tar", members))
    assert [found.read_captions(i) for i in range(3)] == [
        ("a dog", "a cat", "one line"), ("Äpfel", "Birnen"), ("Äpfel",)
    ]  # fmt: skip
    with pytest.raises(ClipkitError, match=r"0\.tar/3\.jpg: its \.txt is not UTF-8"):
        found.read_captions(3)


@pytest.mark.parametrize("captions", [[""], [None], [], " "])
def test_a_json_that_says_nothing_hides_no_txt(
    captions: object, tmp_path: Path, write_tar: Write, picture: Callable[..., bytes]
) -> None:
    members = [("0.jpg", picture(0)), ("0.txt", b"a dog"), ("0.json", json.dumps({"captions": captions}).encode())]
    assert open_shards(write_tar(tmp_path / "0.tar", members)).read_captions(0) == ("a dog",)


def test_many_problems_are_counted(tmp_path: Path, write_tar: Write, picture: Callable[..., bytes]) -> None:
    for n in range(3):
        members = [("good.jpg", picture(0)), ("good.txt", b"a"), *((f"k{i}.txt", b"a") for i in range(4))]
        write_tar(tmp_path / f"{n}.tar", [*members, *((f"key.{i}.txt", b"a") for i in range(30))])
    with pytest.warns(UserWarning, match=r"10 more problems; 3 of 3 shards have some; `clipkit doctor` lists them"):
        found = open_shards(tmp_path)
    assert "and 24 more: a key ends at the first dot of the name" in found.problems[4]


def test_few_shards_are_kept_open_where_a_process_may_open_few_files(tmp_path: Path, write_shards: Write) -> None:
    """A quarter: what hands batches from process to process needs files as well, and would wait for ever without."""
    resource = pytest.importorskip("resource")
    found = open_shards(write_shards(tmp_path / "s", 40, 1))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))
        assert len(list(found)) == 40
        assert len(found._files._files) == 32
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
