"""A folder holds a whole data set or none: used ones, kills, a full disk, two preparations at once."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from data_prep_helpers import Slow, content, picture, records

from clipkit.errors import ClipkitError
from clipkit.pairs.shards import open_shards
from data_prep.card import write_card
from data_prep.filters import Filters, apply_filters
from data_prep.planning import PlanRule, SplitRule
from data_prep.records import Record
from data_prep.shards import write_shards
from data_prep.workplace import Workplace, is_whole


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine" / "train").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "000000.tar").write_bytes(b"precious")
    with pytest.raises(ClipkitError, match="is not empty"):
        write_shards(records(1), tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "train" / "000000.tar").read_bytes() == b"precious"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ClipkitError, match="a file of that name"):
        write_shards(records(1), tmp_path / "file")
    write_shards(records(3), tmp_path / "out", rule=PlanRule(SplitRule(0.5, 0), "off"))
    with pytest.raises(ClipkitError, match=r"holds a data set already.*--overwrite"):
        write_shards(records(1), tmp_path / "out")
    assert write_shards(records(1), tmp_path / "out", overwrite=True).samples == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["dataset.json", "train"]
    assert len(list((tmp_path / "out" / "train").glob("*.tar"))) == 1


def test_a_dataset_json_of_another_program_is_no_data_set_of_ours(tmp_path: Path) -> None:
    """StyleGAN and nnU-Net call a file of theirs so."""
    (tmp_path / "mine" / "train").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "a.jpg").write_bytes(b"precious")
    for theirs in ('{"labels": [["a.jpg", 3]]}', "[1, 2]", "no json", "[" * 100_000):
        (tmp_path / "mine" / "dataset.json").write_text(theirs)
        for overwrite in (False, True):
            with pytest.raises(ClipkitError, match="holds no data set of ours"):
                write_shards(records(1), tmp_path / "mine", overwrite=overwrite)
    assert (tmp_path / "mine" / "train" / "a.jpg").read_bytes() == b"precious"


def test_what_is_to_be_replaced_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_shards(records(4), out, samples_per_shard=2)
    before = content(out)
    with pytest.raises(ClipkitError, match="not one good picture"):
        write_shards([Record("a", b"no picture", ("c",))], out, overwrite=True)
    assert content(out) == before and is_whole(out)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("data_prep.shards.write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_shards(records(3), out, samples_per_shard=2, overwrite=True)
    kept = {name: data for name, data in content(out).items() if not name.startswith(".work")}
    assert kept == before and is_whole(out), "the old one, with the work on the new one beside it"
    assert write_shards(records(4), out, samples_per_shard=2).reused, "the old command still finds it"
    with pytest.raises(ClipkitError, match=r"holds a data set already.*--overwrite"):
        write_shards(records(3), out, samples_per_shard=2)
    write_shards(records(3), out, samples_per_shard=2, overwrite=True)
    write_shards(records(3), tmp_path / "fresh", samples_per_shard=2)
    assert content(out) == content(tmp_path / "fresh")


def killed(monkeypatch: pytest.MonkeyPatch, method: str, at: int, job: Callable[[], object]) -> bool:
    """Whether ``job`` ended before the change on the disk number ``at`` that ``Workplace.method`` makes: a dead process
    changes nothing, so what would tidy up behind it fails as well."""
    changes, begun = 0, False
    begin = getattr(Workplace, method)

    def begins(*args: Any, **options: Any) -> None:
        nonlocal begun
        begun = True
        begin(*args, **options)
        begun = False

    def ends(change: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: Any, **options: Any) -> None:
            nonlocal changes
            changes += begun
            if changes > at:
                raise KeyboardInterrupt
            change(*args, **options)

        return counted

    with monkeypatch.context() as patched:
        patched.setattr(Workplace, method, begins)
        for name in ("unlink", "rmdir", "replace", "mkdir"):
            patched.setattr(os, name, ends(getattr(os, name)))
        try:
            job()
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("again", [None, pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_kill_while_publishing_leaves_the_new_one_and_no_part_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: int | None
) -> None:
    """The tars of both have the same names and sizes. A second run may be killed too, while it claims the folder."""
    monkeypatch.setattr("data_prep.workplace.wait_for_disk", lambda: None)
    splits = {"old": ("train", "val", "train"), "new": ("test", "train", "train")}
    named = {
        name: [Record(f"{i}", picture(i), (f"{name} {i}",), split=split) for i, split in enumerate(splits[name])]
        for name in splits
    }
    old, fresh = tmp_path / "old", tmp_path / "fresh"
    write_shards([*named["old"], Record("bad", b"no picture", ("c",))], old, samples_per_shard=1)
    apply_filters(old, Filters(min_side=2))
    write_card(old)
    write_shards(named["new"], fresh, samples_per_shard=1)
    for at in itertools.count():
        out = tmp_path / f"out{at}"
        shutil.copytree(old, out)

        def job(out: Path = out) -> object:
            return write_shards(named["new"], out, samples_per_shard=1, overwrite=True)

        if not killed(monkeypatch, "publish", at, job):
            break
        if again is None or killed(monkeypatch, "_claim", again, job):
            job()
        assert content(out) == content(fresh), f"killed before change {at}"
    assert at > 30


KILLED = """
import sys, time
sys.path[:0] = {path!r}
from data_prep import stage
from data_prep_helpers import Slow
from data_prep.records import Record
from data_prep.shards import write_shards

stage.PIECE = 20
import data_prep.shards
data_prep.shards.PIECE = 20
print("go", flush=True)
write_shards([Record(f"{{i:06d}}", Slow(i), ("c",)) for i in range(120)], {out!r}, 20, processes={processes})
"""


@pytest.mark.parametrize(("delay", "processes"), [(0.1, 1), (1.0, 2)])
def test_a_killed_conversion_never_looks_whole_and_goes_on_with_the_same_bytes(
    tmp_path: Path, delay: float, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    code = KILLED.format(path=[os.getcwd(), str(Path(__file__).parent)], out=str(out), processes=processes)
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"go\n"
    time.sleep(delay)
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()
    if is_whole(out):  # a fast machine
        return
    for shard in out.rglob("*.tar"):
        assert len(open_shards(shard)) == 20  # what has its name is whole
    monkeypatch.setattr("data_prep.stage.PIECE", 20)
    monkeypatch.setattr("data_prep.shards.PIECE", 20)
    same = [Record(f"{i:06d}", Slow(i), ("c",)) for i in range(120)]
    write_shards(same, out, samples_per_shard=20)
    write_shards(same, tmp_path / "fresh", samples_per_shard=20)
    assert content(out) == content(tmp_path / "fresh")
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize("written", [1, 3, 4])
def test_a_full_disk_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    replace, n = os.replace, 0

    def full(source: str, target: str) -> None:
        nonlocal n
        n += 1
        if n > written:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_shards(records(5), tmp_path / "out", samples_per_shard=2)
    assert not is_whole(tmp_path / "out")
    monkeypatch.undo()
    assert write_shards(records(5), tmp_path / "out", samples_per_shard=2).samples == 5


def test_a_second_preparation_is_refused_and_one_that_came_too_late_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.workplace._PATIENCE", 0.05)
    first = Workplace(tmp_path / "out", "inputs", overwrite=False)
    with pytest.raises(ClipkitError, match="another preparation is writing there"):
        Workplace(tmp_path / "out", "inputs", overwrite=False)
    first.close()

    def ends_while_it_is_waited_for(file: IO[bytes]) -> bool:
        shutil.rmtree(tmp_path / "out" / ".work")
        (tmp_path / "out" / "dataset.json").write_text('{"inputs": "", "splits": {}}')
        return True

    monkeypatch.setattr("data_prep.workplace._locked", ends_while_it_is_waited_for)
    with pytest.raises(ClipkitError, match="another preparation ended there just now"):
        Workplace(tmp_path / "out", "inputs", overwrite=False)
    assert is_whole(tmp_path / "out")
