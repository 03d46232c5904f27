"""Receipts: every epoch accounts for every sample of every shard, whatever happened to the run in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from test_failures import make_shards
from training_helpers import losses, make_table

from clipkit.training import loop

pytestmark = pytest.mark.usefixtures("steady")


def receipts(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "receipts.jsonl").read_text().splitlines()]


def by_shard(receipt: dict[str, Any]) -> dict[str, list[int]]:
    return {Path(name).name: counts for name, counts in receipt["shards"].items()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "data", 60, bad=[3, 5, 41], mute=[17])


def test_every_sample_of_every_shard_is_accounted_for(run_here: Any, tmp_path: Path, data: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert run_here(run, train_data=data, batch_size=25, epochs=3) == 0  # the tail of an epoch is carried
    found = receipts(run)
    assert [(r["epoch"], r["step"]) for r in found] == [(0, 3), (1, 5), (2, 8)]
    assert [(r["seen"], r["substituted"]) for r in found] == [(56, 4)] * 3
    assert [r["quarantined"] for r in found] == [4, 0, 0], "listed once, in the epoch in which it was found"
    assert by_shard(found[0]) == {"000000.tar": [27, 3, 3, 0], "000001.tar": [29, 1, 1, 0]}
    assert "epoch 2: 56 samples seen, 4 substituted" in capsys.readouterr().out


def test_an_epoch_without_trouble_is_no_news(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert run_here(run, train_data=make_shards(tmp_path / "whole", 40), batch_size=20, epochs=2) == 0
    assert [r["seen"] for r in receipts(run)] == [40, 40]
    assert "samples seen" not in capsys.readouterr().out


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 4])
def test_a_receipt_goes_on_where_the_run_does(
    run_here: Any, tmp_path: Path, data: Path, monkeypatch: Any, step: int
) -> None:
    settings = {"train_data": data, "batch_size": 25, "epochs": 4, "save_every": 2, "keep_last": 99}
    assert run_here(tmp_path / "whole", **settings) == 0
    run = tmp_path / "run"
    made = [0]
    real = loop.train_step

    def stop(*args: Any, **kwargs: Any) -> Any:
        made[0] += 1
        if made[0] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop)
        assert run_here(run, **settings) == 0
    assert run_here(run, **settings, resume="auto") == 0
    assert receipts(run) == receipts(tmp_path / "whole") and losses(run) == losses(tmp_path / "whole")
    # gone back further than the last receipt: what was written behind it is cut off and written again
    again = tmp_path / "again"
    shutil.copytree(run, again)
    assert run_here(again, **settings, resume=again / "checkpoints" / "step-2") == 0
    assert receipts(again) == receipts(run)


def test_a_mixture_has_a_receipt_for_each_source(run_here: Any, tmp_path: Path) -> None:
    one, other = make_shards(tmp_path / "one", 40, bad=[7]), make_table(tmp_path / "other", 30, noise=3)
    run = tmp_path / "run"
    assert run_here(run, train_data=f"{one}::{other}", train_weights=[3, 1], epochs=3, batch_size=20) == 0
    found = receipts(run)
    assert {r["source"] for r in found} == {str(one), str(other)}
    of_one = [r for r in found if r["source"] == str(one)]
    assert [r["epoch"] for r in of_one] == list(range(len(of_one))) and len(of_one) >= 3
    assert all(r["seen"] == 39 and r["substituted"] == 1 for r in of_one)
    assert all(r["seen"] == 30 for r in found if r["source"] == str(other))


@pytest.mark.parametrize("lock_text", [False, True])
def test_captions_that_are_cut_off_are_counted(run_here: Any, tmp_path: Path, capsys: Any, lock_text: bool) -> None:
    table = make_table(tmp_path / "data", 40)
    text = table.read_text().splitlines()
    for row in (4, 9, 30):  # the context is 24 tokens
        text[row] += " and so on" * 12
    table.write_text("\n".join(text) + "\n")
    assert run_here(tmp_path / "run", train_data=table, epochs=2, batch_size=20, lock_text=lock_text) == 0
    assert [r["truncated"] for r in receipts(tmp_path / "run")] == [3, 3]
    assert "3 captions longer than the text tower's context" in capsys.readouterr().out
