"""The guard: captions that say the same, and copies of a picture, on a disk and behind a URL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_server import serve

from clipkit.pairs import ShardSet, open_shards
from clipkit.pairs.guard import NONE, WIDTH, caption_group, caption_groups, picture_groups

Write = Callable[..., Path]


def with_scores(folder: Path, copy_of: dict[str, str]) -> ShardSet:
    """The shards of ``folder``, with what data_prep writes where it has looked for copies."""
    shards = open_shards(folder)
    for shard in shards.shards:
        table = {"key": list(shard.keys), "copy_of": pa.array([copy_of.get(k) for k in shard.keys], pa.string())}
        pq.write_table(pa.table(table), f"{shard.path}.scores.parquet")
    return shards


def copies(shards: ShardSet) -> list[int]:
    """The last group of each sample's picture; that of its caption is the same."""
    groups = [picture_groups(shards, i, ["a"])[-1] for i in range(len(shards))]
    assert groups == [caption_groups(shards, i, "b")[-1] for i in range(len(shards))]
    return groups


def test_captions_share_a_group_if_they_differ_by_case_and_punctuation_only() -> None:
    assert caption_group("A red square.") == caption_group("a  red-square") != caption_group("a red squares")
    assert caption_group("!") != caption_group("?"), "nothing but punctuation is what it is"


def test_copies_share_a_group_over_shards_and_others_have_their_own(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 2, 4)
    keys = [sample.key for sample in open_shards(folder)]
    groups = copies(with_scores(folder, {keys[1]: keys[0], keys[6]: keys[0], keys[7]: keys[2]}))
    assert groups[0] == groups[1] == groups[6] and groups[2] == groups[7]
    assert len(set(groups)) == 5 and NONE not in groups


def test_hard_negatives_are_nobodys_copy(tmp_path: Path, write_shards: Write) -> None:
    shards = with_scores(write_shards(tmp_path / "s", 1, 2), {})
    groups = caption_groups(shards, 0, "c", is_negative=True)
    assert len(groups) == WIDTH and groups[-1] == NONE


def test_where_nobody_looked_there_are_no_copies(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 1, 3)
    Path(f"{folder}/000000.tar.scores.parquet").write_bytes(b"something else")
    assert copies(open_shards(folder)) == [NONE] * 3


def test_remote_shards_are_guarded_by_the_scores_beside_them(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 3, 4)
    keys = [sample.key for sample in open_shards(folder)]
    with_scores(folder, {keys[9]: keys[0]})
    Path(f"{folder}/000001.tar.scores.parquet").unlink()
    with serve(folder) as server:
        shards = open_shards(f"{server.url}/{{000000..000002}}.tar")
        server.asked.clear()
        groups = copies(shards)
        assert groups[9] == groups[0] and groups[4:8] == [NONE] * 4 and len(set(groups)) == 8
        assert len(server.asked) == 3, "each file is asked for once, the one that is not there too"


@pytest.mark.parametrize("absent", [403, 404])
def test_remote_shards_without_scores_are_not_guarded(absent: int, tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 1, 3)
    with serve(folder) as server:
        server.absent = absent
        assert copies(open_shards(f"{server.url}/000000.tar")) == [NONE] * 3
