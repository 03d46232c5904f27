"""``clipkit stream`` prints what training reads, and the same for any number of ranks and workers."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from clipkit.cli import main
from clipkit.pairs import Order, open_shards, step_items


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), 5, 30, bad=[7, 100])


def said(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["stream", *map(str, arguments)])
    return status, out.getvalue(), err.getvalue()


def keys(*arguments: object) -> list[list[str]]:
    status, out, err = said(*arguments, "--keys")
    assert status == 0, err
    return [line.split("\t") for line in out.splitlines()]


def test_keys_are_those_of_the_order(folder: Path) -> None:
    shards = open_shards(folder)
    order = Order(shards.sizes, 1)
    found = keys(folder, "--batch-size", 40, "--seed", 1, "--from-step", 3, "--steps", 4)
    wanted = [(step, shards.key(s)) for step in range(3, 7) for _, s in step_items(order, step, 40)]
    assert [int(step) for step, _ in found] == [step for step, _ in wanted]
    assert {got for (_, got), (_, key) in zip(found, wanted, strict=True) if got != key}, "no bad sample was replaced"
    for (_, got), (_, key) in zip(found, wanted, strict=True):
        assert got == key or key in ("000007", "000100")


@pytest.mark.parametrize(
    "arguments", [("--ranks", 3), ("--workers", 2), ("--ranks", 8), ("--ranks", 2, "--workers", 1)]
)
def test_any_number_of_ranks_and_workers_prints_the_same(folder: Path, arguments: tuple[object, ...]) -> None:
    common = (folder, "--batch-size", 20, "--seed", 1, "--from-step", 5, "--steps", 2)
    assert keys(*common, *arguments) == keys(*common)


def test_per_rank(folder: Path) -> None:
    common = (folder, "--batch-size", 20, "--steps", 2, "--ranks", 3)
    rows = keys(*common, "--per-rank")
    assert [[step, key] for step, _, key in rows] == keys(*common)
    assert [[r for s, r, _ in rows if s == "1"].count(rank) for rank in "012"] == [7, 7, 6]


def test_a_mixture(folder: Path) -> None:
    other = folder / "000002.tar"
    rows = keys(f"{folder}::{other}", "--train-weights", 1, 1, "--batch-size", 30, "--steps", 4)
    assert len(rows) == 120 and sum("000060" <= key <= "000089" for _, key in rows) > 40


def test_speed(folder: Path) -> None:
    status, out, _ = said(folder, "--batch-size", 50, "--steps", 2, "--size", 32)
    assert status == 0 and "150 samples in 5 shard(s)" in out and "samples/s" in out and "per CPU second" in out


def test_the_speed_of_one_small_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes less time than the system counts in."""
    monkeypatch.setattr(os, "times", lambda: os.times_result((0.0, 0.0, 0.0, 0.0, 0.0)))
    status, out, err = said(folder, "--batch-size", 1, "--steps", 1, "--size", 16)
    assert status == 0 and "per CPU second" in out, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", 0), "--steps is 0"),
        (("--from-step", -1), "--from-step is -1"),
        (("--batch-size", 500), "--batch-size 150"),
        (("--batch-size", 2, "--ranks", 3), "number of processes"),
        (("--keyz",), "--keyz"),
        (("--seed", 2**63), "--seed is 9223372036854775808; it must fit in 64 bits"),
        (("--from-step", 10**18), "--from-step 1000000000000000000 with --steps"),
        (("--from-step", 10**22), "--from-step"),
        (("--size", 100_000), "--size is 100000; it must be at most 4,096"),
        (("--train-weights", 1, 2), "--train-weights are for several sources"),
    ],
)
def test_mistakes_are_one_line(folder: Path, arguments: tuple[object, ...], words: str) -> None:
    status, _, err = said(folder, *arguments)
    assert status == 2 and words in err and len(err.splitlines()) == 1, err
    assert said("nowhere")[0] == 2


@pytest.mark.parametrize("name", ["", "::", "A::", "::A", " "])
def test_a_source_without_a_name_is_refused(folder: Path, name: str) -> None:
    status, _, err = said(name.replace("A", str(folder)), "--batch-size", 10)
    assert status == 2 and "a source without a name" in err and len(err.splitlines()) == 1, err


def test_keys_are_one_line_each_for_every_output(
    tmp_path: Path, write_tar: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    names = ["new\nline", "t\tab", "caf\udce9", "größe"]
    members = [(f"{n}.{e}", data) for i, n in enumerate(names) for e, data in (("jpg", picture(i)), ("txt", b"a"))]
    path = write_tar(tmp_path / "a.tar", members, tarfile.GNU_FORMAT)
    for encoding, last in (("utf-8", "größe"), ("ascii", "gr\\xf6\\xdfe")):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with redirect_stdout(out):
            assert main(["stream", str(path), "--batch-size", "4", "--steps", "1", "--keys"]) == 0
        out.seek(0)
        assert out.read().splitlines() == ["0\tnew\\nline", "0\tt\\tab", "0\tcaf\\udce9", f"0\t{last}"]


def test_pictures_without_captions(
    tmp_path: Path, picture: Callable[..., bytes], write_tar: Callable[..., Path]
) -> None:
    path = write_tar(tmp_path / "0.tar", [(f"{n}.jpg", picture(n)) for n in range(6)])
    found = keys(path, "--batch-size", 6, "--steps", 1)
    assert sorted(key for _, key in found) == list("012345")


def test_captions_that_are_not_read(tmp_path: Path, picture: Callable[..., bytes], folder: Path) -> None:
    """A folder of pictures as simclr reads it, and shards of which no caption is bad then."""
    for n in range(6):
        (tmp_path / f"{n}.jpg").write_bytes(picture(n))
    status, _, err = said(tmp_path, "--batch-size", 6, "--keys")
    assert status == 2 and "--captions none" in err
    found = keys(tmp_path, "--batch-size", 6, "--steps", 2, "--captions", "none")
    assert len(found) == 12 and len({key for _, key in found}) == 6
    common = (folder, "--batch-size", 30, "--steps", 2)
    assert keys(*common, "--captions", "none") == keys(*common)
