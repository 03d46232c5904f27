"""What a sample says: captions in its json or its txt, and what is told where there are none."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from clipkit.errors import ClipkitError
from clipkit.pairs import ShardSet, open_shards

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))


def quietly(path: Path | str) -> ShardSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_shards(path)


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


def test_json_that_is_nested_too_deeply_is_an_error_that_names_its_sample(tmp_path: Path, write_tar: Write) -> None:
    for record in (b"[" * 200_000, b'{"caption": "a", "x": ' + b"[" * 200 + b"]" * 200 + b"}"):
        path = write_tar(tmp_path / "a.tar", [("k.jpg", b"x"), ("k.json", record)])
        with pytest.raises(ClipkitError, match=r"a.tar/k.jpg: its .json is not valid JSON, or nested too deeply"):
            open_shards(path).read(0)
        path.unlink()
    many = json.dumps({"caption": "a", "boxes": [[1, 2, 3, 4]] * 300}).encode()
    assert open_shards(write_tar(tmp_path / "b.tar", [("k.jpg", b"x"), ("k.json", many)])).read_captions(0) == ("a",)


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


def test_a_txt_behind_good_captions_is_not_looked_at(
    tmp_path: Path, write_tar: Write, picture: Callable[..., bytes]
) -> None:
    members = [("0.jpg", picture(0)), ("0.txt", "Äpfel".encode("latin-1")), ("0.json", b'{"captions": ["a dog"]}')]
    assert open_shards(write_tar(tmp_path / "0.tar", members)).read_captions(0) == ("a dog",)
