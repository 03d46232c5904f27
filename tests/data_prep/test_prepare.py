"""``prepare``, ``cached_shards`` and the command, from what a user has to what training reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_prep_helpers import captions, content, picture, pictures, samples

from clipkit.data_option import left_out_of
from clipkit.errors import ClipkitError
from data_prep import cached_shards, is_whole, prepare, read_source
from data_prep.__main__ import main
from data_prep.card import statistics
from data_prep.prepare import CopyOptions


def table(folder: Path, n: int = 6) -> Path:
    pictures(folder, n)
    path = folder / "captions.csv"
    path.write_text("filepath,caption\n" + "".join(f"{i}.jpg,caption {i}\n" for i in range(n)))
    return path


def test_prepare_picks_the_source(tmp_path: Path) -> None:
    assert prepare(table(tmp_path / "t"), tmp_path / "a").samples == 6
    assert samples(tmp_path / "a")["00000003"]["json"] == {"captions": ["caption 3"], "file": "3.jpg"}
    pictures(tmp_path / "c" / "cat", 2)
    prepare(tmp_path / "c", tmp_path / "b", template="one {}")
    assert captions(tmp_path / "b") == [["one cat"]] * 2
    with pytest.raises(ClipkitError, match=r"did you mean 'openmoji'"):
        prepare("openmojis", tmp_path / "d")
    with pytest.raises(ClipkitError, match=r"nowhere.*no such file"):
        prepare(tmp_path / "nowhere", tmp_path / "d")


def test_a_table_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    path = table(tmp_path / "what? [1]").rename(tmp_path / "what? [1]" / "cap [1]*.csv")
    assert len(read_source(path).records) == 6
    prepare(path, tmp_path / "out", processes=1)
    assert len(read_source(f"{tmp_path}/out/train/00000?.tar").records) == 6


def test_a_source_inside_what_would_be_replaced_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    prepare(table(mine), mine / "shards")  # the other way round is usual
    before = content(mine / "shards")
    for source in (mine / "shards", mine / "shards" / "train", mine / "shards" / "train" / "000000.tar"):
        with pytest.raises(ClipkitError, match=r"lies in .*choose another folder"):
            prepare(source, mine / "shards", overwrite=True)
    with pytest.raises(ClipkitError, match="lies in"):
        prepare(mine / "captions.csv", mine / "shards", copies=CopyOptions(decontaminate=(str(mine / "shards"),)))
    assert content(mine / "shards") == before


def test_skipped_rows_reach_the_list(tmp_path: Path) -> None:
    path = table(tmp_path / "t")
    with open(path, "a") as file:
        file.write("gone.jpg,x\n0.jpg,\n")
    (tmp_path / "t" / "5.jpg").write_bytes(b"bad")
    summary = prepare(path, tmp_path / "out")
    assert (summary.samples, summary.skipped) == (5, 3)
    assert [Path(s.file).name for s in summary.first_skipped] == ["gone.jpg", "0.jpg", "5.jpg"]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85"])
def test_a_skipped_file_whose_name_has_what_some_take_for_a_line_end(tmp_path: Path, end: str) -> None:
    for path in pictures(tmp_path / "in", 3):
        path.with_suffix(".txt").write_text(f"of {path.stem}")
    (tmp_path / "in" / "2.txt").rename(tmp_path / "in" / "gone.txt")
    name = f"a{end}b.jpg"
    (tmp_path / "in" / "2.jpg").rename(tmp_path / "in" / name)
    for _ in range(2):
        assert prepare(tmp_path / "in", tmp_path / "out", processes=1).first_skipped[0].file.endswith(name)
    assert statistics(tmp_path / "out")["left_out"]["reasons"][0]["example"].endswith(name)
    assert [bad.where for bad in left_out_of(tmp_path / "out")] == [str(tmp_path / "in" / name)]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path / "t", 40)
    assert main([str(path), str(tmp_path / "out"), "--split-val", "0.2", "--split-test", "0.2"]) == 0
    printed = capsys.readouterr().out
    assert "40 pictures" in printed and "val:" in printed and "test:" in printed
    assert main([str(path), str(tmp_path / "b"), "--caption-column", "title"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("clipkit: ") and "no column 'title'" in message and message.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_cache_is_used_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "t")
    cache = tmp_path / "cache"
    monkeypatch.setenv("CLIPKIT_CACHE", str(cache))
    first = cached_shards(path)
    assert first.parent == cache / "shards" and is_whole(first)
    stamp = (first / "dataset.json").stat().st_mtime_ns
    assert cached_shards(str(path)) == first and (first / "dataset.json").stat().st_mtime_ns == stamp
    assert cached_shards(path, tmp_path / "elsewhere").parent == tmp_path / "elsewhere" / "shards"
    made = {first}
    made.add(cached_shards(path, samples_per_shard=2))
    made.add(cached_shards(path, split_val=0.5))
    picture = tmp_path / "t" / "0.jpg"
    stat = picture.stat()
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    made.add(cached_shards(path))
    with open(path, "a") as file:
        file.write("0.jpg,another\n")
    last = cached_shards(path)
    assert len(made | {last}) == 5
    assert captions(last)[0] == ["caption 0", "another"]
    assert sorted(p.name for p in (cache / "shards").iterdir() if p.is_dir()) == sorted(
        p.name for p in made | {last}
    )  # no work folder is left


def test_cache_of_a_bad_source_is_not_kept(tmp_path: Path) -> None:
    path = table(tmp_path / "t", 1)
    (tmp_path / "t" / "0.jpg").write_bytes(b"bad")
    with pytest.raises(ClipkitError, match="not one good picture"):
        cached_shards(path, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache" / "shards").iterdir() if p.is_dir()]


ASK = "import sys; from data_prep import cached_shards; print(cached_shards(sys.argv[1], sys.argv[2]))"


@pytest.mark.slow
def test_several_processes_may_ask_at_once(tmp_path: Path) -> None:
    path = table(tmp_path / "t", 200)
    command = [sys.executable, "-c", ASK, str(path), str(tmp_path / "cache")]
    asking = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [process.communicate(timeout=60)[0].strip() for process in asking]
    assert [process.returncode for process in asking] == [0] * 4 and len(set(answers)) == 1
    place = Path(answers[0])
    assert [p for p in place.parent.iterdir() if p.is_dir()] == [place]
    assert len(samples(place)) == 200
    again = cached_shards(path, tmp_path / "fresh")
    assert content(place) == content(again)


def test_a_killed_conversion_does_not_spoil_the_cache(tmp_path: Path) -> None:
    path = table(tmp_path / "t", 400)
    cache = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", ASK, str(path), str(cache)], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while not list(cache.rglob("*.tar*")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.kill()
    process.wait()
    place = cached_shards(path, cache)
    assert is_whole(place) and len(samples(place)) == 400
    assert [p for p in place.parent.iterdir() if p.is_dir()] == [place]


def test_evaluation_pictures_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    (tmp_path / "broken.png").write_bytes(b"x")
    (tmp_path / "all.csv").write_text("image,caption\n0.png,a\n1.png,b\n2.png,c\n")
    (tmp_path / "eval.csv").write_text("image,caption\n0.png,a\ngone.png,b\nbroken.png,b\n")
    done = prepare(
        tmp_path / "all.csv", tmp_path / "out", copies=CopyOptions(decontaminate=(str(tmp_path / "eval.csv"),))
    )
    assert done.samples == 2 and done.skipped == 3
    said = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    unseen = {Path(entry["file"]).name: entry["reason"] for entry in said if entry["kind"] == "unseen"}
    assert set(unseen) == {"gone.png", "broken.png"}
    assert all("an evaluation set, and cannot be read" in r and "training may hold it" in r for r in unseen.values())


def test_evaluation_pictures_need_no_captions(tmp_path: Path) -> None:
    """Nor a column that is called as that of the training table."""
    for folder in ("mine", "theirs"):
        (tmp_path / folder).mkdir()
        for n in range(3):
            (tmp_path / folder / f"{n}.png").write_bytes(picture(n + 2 * (folder == "theirs")))
    (tmp_path / "mine" / "all.csv").write_text("image,words\n0.png,a\n1.png,b\n2.png,c\n")
    (tmp_path / "theirs.csv").write_text("image,caption\ntheirs/0.png,\n")
    for name in ("theirs", "theirs.csv"):
        copies = CopyOptions(decontaminate=(str(tmp_path / name),))
        done = prepare(tmp_path / "mine" / "all.csv", tmp_path / f"out-{name}", copies=copies, caption_column="words")
        assert done.samples == 2 and [s.kind for s in done.first_skipped] == ["evaluation"]
