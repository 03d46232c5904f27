"""The checkpoints of a run: their order, what counts as whole, which one is meant, what may go."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clipkit.config import Config
from clipkit.errors import ClipkitError
from clipkit.recipes import find_recipe
from clipkit.training.checkpoint import State, damage, load_weights, save_checkpoint
from clipkit.training.kept import checkpoint_of, checkpoints, find_checkpoint, newest_whole, prune, survey


def make(run: Path, step: int, written: float | None = None, name: str = "", **state: Any) -> Path:
    """A checkpoint of one weight, as a clipkit that wrote no digests left it."""
    folder = run / "checkpoints" / (name or f"step-{step}")
    folder.mkdir(parents=True)
    for file in ("model", "optimizer"):
        save_file({"0.weight": torch.full((3,), float(step))}, folder / f"{file}.safetensors")
    for file in ("optimizer.json", "model.json"):
        (folder / file).write_text("{}")
    values = {"step": step, "fingerprint": "", "best": None, "arithmetic": {}, "seconds": 0.0, **state}
    if written is not None:
        values["written"] = written
    (folder / "state.json").write_text(json.dumps(values))
    return folder


def save(run: Path, model: Any, step: int, config: Config) -> None:
    state = State(step, "", None, {}, 0.0, written=float(step))
    save_checkpoint(run, model, {"state": {}, "param_groups": []}, state, config)


def spoil(checkpoint: Path, name: str = "model.safetensors") -> None:
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:-4])


def names(run: Path) -> list[str]:
    return [path.name for path in checkpoints(run)]


def test_checkpoints_are_sorted_by_number(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        make(tmp_path, step)
    for name in ("step-x", ".tmp-step-200-1"):
        make(tmp_path, 200, name=name)
    assert names(tmp_path) == ["step-9", "step-20", "step-100"]


def test_the_order_is_that_of_writing(tmp_path: Path) -> None:
    """After going back to step 20 and on to 30, the 30 is newer than the 100 of the old course."""
    for step, written in ((20, 1.0), (100, 2.0), (30, 3.0)):
        make(tmp_path, step, written)
    assert names(tmp_path) == ["step-20", "step-100", "step-30"]
    assert newest_whole(tmp_path) == (tmp_path / "checkpoints" / "step-30", [])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "optimizer.json", "model.json"])
def test_whole_means_every_file(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path, 1)
    assert damage(folder) is None and damage(folder, contents=True) is None
    (folder / name).write_bytes((folder / name).read_bytes()[:1])
    assert name in str(damage(folder))
    (folder / name).unlink()
    assert damage(folder) == f"{name} is missing"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", "{}", '{"step": 3}', '{"step": "a", "best": null}', '{"step": 1, "best": 5}', "\x00\x00"],
)
def test_a_state_that_is_none(tmp_path: Path, text: str) -> None:
    folder = make(tmp_path, 1)
    (folder / "state.json").write_text(text)
    wrong = damage(folder)
    assert wrong is not None and wrong.startswith("state.json") and "\n" not in wrong


@pytest.mark.parametrize("text", ["[1]", "7", "{", '{"gone.safetensors": ""}', '{"model.safetensors": 7}'])
def test_digests_that_are_none(tmp_path: Path, text: str) -> None:
    folder = make(tmp_path, 1)
    (folder / "digests.json").write_text(text)
    assert damage(folder, contents=True) is not None


def test_no_checkpoints(tmp_path: Path) -> None:
    assert survey(tmp_path) == [] and newest_whole(tmp_path) == (None, [])
    with pytest.raises(ClipkitError, match="no checkpoint in it"):
        find_checkpoint(tmp_path)
    prune(tmp_path, 2, None)


def test_a_line_for_every_damaged_one(tmp_path: Path) -> None:
    made = [make(tmp_path, step, float(step)) for step in (1, 2, 3, 4, 5)]
    for i in (0, 2, 4):
        spoil(made[i])
    newest, lines = newest_whole(tmp_path)
    assert newest == made[3]
    assert [("step-5" in line, "step-4" in line) for line in lines] == [(True, True), (False, False), (False, False)]
    assert "step-3" in lines[1] and "step-1" in lines[2]


def test_all_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        spoil(make(tmp_path, step, float(step)))
    for find in (newest_whole, find_checkpoint):
        with pytest.raises(ClipkitError, match=r"every checkpoint is damaged \(the newest, step-2: model.safetensors"):
            find(tmp_path)


def test_find_takes_the_best_the_newest_or_the_next_whole_one(tmp_path: Path) -> None:
    made = [make(tmp_path, step, float(step), best=[0.5, 1]) for step in (1, 2, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_checkpoint(tmp_path) == made[0]
        assert find_checkpoint(made[1]) == made[1]
    spoil(made[0])
    with pytest.warns(UserWarning, match=r"step-1 is damaged .* step-3 is used instead"):
        assert find_checkpoint(tmp_path) == made[2]
    spoil(made[2])
    with pytest.warns(UserWarning, match="step-2 is used instead"):
        assert find_checkpoint(tmp_path) == made[1]


def test_prune_counts_whole_ones_only(tmp_path: Path) -> None:
    """Two damaged ones must not push the last whole ones out."""
    made = [make(tmp_path, step, float(step)) for step in (1, 2, 3, 4, 5, 6)]
    for i in (0, 4, 5):
        spoil(made[i])
    prune(tmp_path, 2, best_step=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-2",
        "step-3",
        "step-4",
        "step-5",
        "step-6",
    ]
    prune(tmp_path, 1, best_step=None)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-4", "step-5", "step-6"]


def test_prune_removes_an_old_damaged_one(tmp_path: Path) -> None:
    """One whose state cannot be read is dated by its folder."""
    old = make(tmp_path, 1, 1.0)
    (old / "state.json").unlink()
    os.utime(old, (1, 1))
    for step in (2, 3):
        make(tmp_path, step, float(step))
    prune(tmp_path, 2, None)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-2", "step-3"]


def test_prune_removes_what_killed_writers_left(tmp_path: Path) -> None:
    make(tmp_path, 1)
    make(tmp_path, 2, name=".tmp-step-2-77")
    (tmp_path / "checkpoints" / ".tmp-frozen-0011.safetensors").write_bytes(b"half")
    prune(tmp_path, 2, None)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


def test_one_that_was_set_aside_counts_until_the_new_one_is_there(tmp_path: Path) -> None:
    aside = make(tmp_path, 4, 4.0, name=".replaced-step-4")
    make(tmp_path, 2, 2.0)
    assert names(tmp_path) == ["step-2", ".replaced-step-4"]
    assert checkpoint_of(tmp_path, 4) == newest_whole(tmp_path)[0] == find_checkpoint(tmp_path) == aside
    new = make(tmp_path, 4, 5.0)
    assert names(tmp_path) == ["step-2", "step-4"] and checkpoint_of(tmp_path, 4) == new
    spoil(new)
    assert names(tmp_path) == ["step-2", ".replaced-step-4"]


def test_prune_puts_one_that_was_set_aside_back_into_its_place(tmp_path: Path) -> None:
    make(tmp_path, 4, 4.0, name=".replaced-step-4")
    prune(tmp_path, 2, None)
    assert names(tmp_path) == ["step-4"]
    make(tmp_path, 4, 3.0, name=".replaced-step-4")
    prune(tmp_path, 2, None)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-4"]


@pytest.mark.parametrize("recipe", ["moco", "byol"])
def test_a_momentum_encoder_is_not_among_what_stays_the_same(recipe: str, tmp_path: Path) -> None:
    config = find_recipe(recipe).defaults.replace(
        image_model="test_resnet", image_pretrained=False, projector_hidden=8, projector_dim=4, momentum=0.5
    )
    model = find_recipe(recipe).encoders(config)
    momentum = [name for name in model.state_dict() if name.startswith("two_views.momentum")]
    assert momentum
    for step in (1, 2, 3):
        with torch.no_grad():
            for name in momentum:
                model.state_dict()[name].add_(1)
        save(tmp_path, model, step, config)
        prune(tmp_path, 2, None)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if not path.name.startswith("frozen-"))
    assert kept == ["step-2", "step-3"]
    assert len(list((tmp_path / "checkpoints").glob("frozen-*"))) <= 1, "what changes is in no file of its own"
    fresh = find_recipe(recipe).encoders(config.replace(seed=1))
    load_weights(fresh, tmp_path / "checkpoints" / "step-3")
    for name, wanted in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], wanted), name


def test_prune_removes_locked_weights_that_no_checkpoint_has(tmp_path: Path) -> None:
    config = Config().replace(image_model="test_resnet", image_pretrained=False, compare="views", lock_image=True)
    for step in (1, 2):
        save(tmp_path, find_recipe("simclr").encoders(config.replace(seed=step)), step, config)
    assert len(list((tmp_path / "checkpoints").glob("frozen-*"))) == 2
    prune(tmp_path, 1, None)
    (left,) = (tmp_path / "checkpoints").glob("frozen-*")
    assert left.samefile(tmp_path / "checkpoints" / "step-2" / "frozen.safetensors")
