"""Rows of every kind of table: separators, quotes, encodings, stray marks."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_prep_helpers import pictures, said, table

from clipkit.errors import ClipkitError
from data_prep.tables import read_table


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_separator_is_found(tmp_path: Path, separator: str) -> None:
    pictures(tmp_path, 1)
    text = (
        separator.join(("id", "image", "text"))
        + "\n"
        + separator.join(("7", "0.jpg", "a, b; c" if separator == "\t" else "a"))
    )
    assert said(table(tmp_path, text)) == {"0.jpg": ("a, b; c" if separator == "\t" else "a",)}


def test_semicolons_with_commas_in_the_captions(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    assert said(
        table(tmp_path, "path;caption, in English\n0.jpg;red, green, blue\n"), caption_column="caption, in English"
    ) == {"0.jpg": ("red, green, blue",)}


def test_separator_can_be_given(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    assert said(table(tmp_path, "image|caption\n0.jpg|a, b\n"), separator="|") == {"0.jpg": ("a, b",)}
    with pytest.raises(ClipkitError, match="single character"):
        read_table(tmp_path / "captions.csv", separator="||")


def test_quotes_newlines_bom_and_windows_line_ends(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    text = '\ufefffilepath,caption\r\n0.jpg,"two\r\nlines, ""quoted"""\r\n1.jpg,plain\r\n\r\n'
    assert said(table(tmp_path, text)) == {"0.jpg": ('two lines, "quoted"',), "1.jpg": ("plain",)}


def test_utf16_and_other_encodings(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    text = "image\tcaption\n0.jpg\tun café\n"
    assert said(table(tmp_path, text, "a.tsv", "utf-16")) == {"0.jpg": ("un café",)}
    path = table(tmp_path, text, "b.tsv", "latin-1")
    with pytest.raises(ClipkitError, match=r"b.tsv: line 2 is not utf-8; .*--encoding latin-1"):
        read_table(path)
    assert said(path, encoding="latin-1") == {"0.jpg": ("un café",)}
    with pytest.raises(ClipkitError, match="no such text encoding"):
        read_table(path, encoding="utf-88")
    for encoding in ("utf-16-le", "utf-16-be"):
        path = table(tmp_path, text, "c.tsv", encoding)
        with pytest.raises(ClipkitError, match=rf"c.tsv: looks like UTF-16 .*--encoding {encoding}"):
            read_table(path)
        assert said(path, encoding=encoding) == {"0.jpg": ("un café",)}


@pytest.mark.parametrize("last", ['1.jpg,"never closed\n2.jpg,b\n3.jpg,c\n', '1.jpg,"never closed'])
def test_a_quote_that_is_never_closed_loses_its_own_line_only(tmp_path: Path, last: str) -> None:
    pictures(tmp_path, 4)
    source = read_table(table(tmp_path, 'image,caption\n0.jpg,"closed\nlater"\n' + last))
    assert [r.captions for r in source.records] == [("closed later",), ("b",), ("c",)][: last.count("\n") or 1]
    assert [s.file for s in source.skipped] == ["captions.csv line 4"]
    assert "never closed" in source.skipped[0].reason
    assert said(table(tmp_path, 'image,caption\n0.jpg,"all\nis closed"', "b.csv")) == {"0.jpg": ("all is closed",)}


@pytest.mark.parametrize(
    "stray",
    [
        '1.jpg,"tis a cat\n2.jpg,two dogs\n3.jpg,"three, birds"\n',  # closed where another quote opens
        '1.jpg,"tis a cat, on a mat\n2.jpg,two dogs\n3.jpg,"three, birds"\n',
        '1.jpg,"tis a cat\n2.jpg,two dogs\n3.jpg,three inches 3"\n',  # strict rules understand this one
    ],
)
def test_a_stray_quote_loses_its_own_line_only(tmp_path: Path, stray: str) -> None:
    pictures(tmp_path, 6)
    source = read_table(table(tmp_path, f"image,caption\n0.jpg,zero\n{stray}4.jpg,four\n5.jpg,five\n"))
    assert [r.meta["file"] for r in source.records] == ["0.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    assert [s.file for s in source.skipped] == ["captions.csv line 3"]
    assert "quote" in source.skipped[0].reason and source.skipped[0].row


def test_a_stray_quote_in_a_first_column_of_captions(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    source = read_table(table(tmp_path, 'caption,image\n"tis a cat,0.jpg\ntwo,1.jpg\n3 inches 3",2.jpg\n'))
    assert [r.captions for r in source.records] == [("two",), ('3 inches 3"',)]
    assert [s.file for s in source.skipped] == ["captions.csv line 2"]


def test_quoted_captions_of_several_lines_are_kept(tmp_path: Path) -> None:
    pictures(tmp_path, 4)
    text = (
        'image,caption\n0.jpg,"a dog,\nrunning, fast\n\nand ""far"""\n1.jpg,"one\ntwo"\n2.jpg,plain\n3.jpg,"x\ny, z"\n'
    )
    source = read_table(table(tmp_path, text))
    assert [r.captions[0] for r in source.records] == ['a dog, running, fast and "far"', "one two", "plain", "x y, z"]
    assert not source.skipped
    turned = 'caption,image\n"a dog, big\nruns, fast",0.jpg\n"b\nc",1.jpg\n'
    assert said(table(tmp_path, turned, "b.csv")) == {"0.jpg": ("a dog, big runs, fast",), "1.jpg": ("b c",)}


def test_many_stray_quotes_are_read_in_linear_time(tmp_path: Path) -> None:
    """Each line closes the quote before it and opens another, so that every record reaches to the end of the file."""
    pictures(tmp_path, 1)
    source = read_table(table(tmp_path, "image,caption\n0.jpg,good\n" + 'b","\n' * 1500))
    assert len(source.records) == 1 and len(source.skipped) == 1500


@pytest.mark.parametrize("name", ["list.tsv", "list.csv", "list.txt"])
def test_a_list_of_addresses_needs_no_header(tmp_path: Path, name: str) -> None:
    lines = ["a dog, a cat, and a bird\thttps://host.test/1.jpg", "a red house\thttps://host.test/2.jpg?x=1,2"]
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    records = read_table(tmp_path / name).records
    assert [(r.captions, r.meta["file"]) for r in records] == [
        (("a dog, a cat, and a bird",), "https://host.test/1.jpg"),
        (("a red house",), "https://host.test/2.jpg?x=1,2"),
    ]
    turned = ["https://host.test/1.jpg|a dog|0.3", "https://host.test/1.jpg|the dog|0.4"]
    (tmp_path / name).write_text("\n".join(turned), encoding="utf-8")
    if name != "list.tsv":
        (record,) = read_table(tmp_path / name).records
        assert record.captions == ("a dog", "the dog") and record.meta["column 3"] == "0.3"


def test_columns_of_one_name(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    path = table(tmp_path, "image,caption,x,x,,caption,\n0.jpg,one,1,2,,two,\n1.jpg,only\n")
    source = read_table(path)
    assert [r.captions for r in source.records] == [("one", "two"), ("only",)]
    assert source.records[0].meta == {"x": ["1", "2"], "file": "0.jpg"}
    with pytest.raises(ClipkitError, match=r"captions.csv: 2 columns are called 'image'"):
        read_table(table(tmp_path, "image,caption,image\n0.jpg,one,1.jpg\n"))
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table([["0.jpg"], ["a"], ["b"]], names=["image", "text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(ClipkitError, match=r"a.parquet: two columns are called 'text'"):
        read_table(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "deep", ["[" * 100_000, '{"image": "1.jpg", "caption": "b", "x": ' + "[" * 200 + "]" * 200 + "}"]
)
def test_json_that_is_nested_too_deeply_is_listed(tmp_path: Path, deep: str) -> None:
    pictures(tmp_path, 2)
    source = read_table(table(tmp_path, '{"image": "0.jpg", "caption": "a"}\n' + deep, "deep.jsonl"))
    assert [r.captions for r in source.records] == [("a",)]
    assert "nested too deeply" in source.skipped[0].reason
