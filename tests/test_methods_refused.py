"""What does not fit a method is refused before a run begins, in a line that names the setting."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "training"))

from training_helpers import make_classes, make_config, make_interactions

import clipkit
from clipkit.errors import ClipkitError


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classes(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def interactions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_interactions(tmp_path_factory.mktemp("interactions"))


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        ("moco", {"momentum": None}, "--queue"),
        ("simclr", {"text_model": "x"}, "trains the image tower alone: pass --image-model"),
        ("clip", {"objective": "global", "negatives": "swap"}, "--negatives none"),
        ("clip", {"gamma_falling": True}, "--objective global"),
        ("simclr", {"negatives": "mined"}, "--negatives mined finds texts"),
        ("clip", {"negatives": "mined", "mining_margin": 3.0}, "--mining-margin is 3.0"),
        ("clip", {"debias": 1.0}, "--debias is 1.0"),
        ("clip", {"hardness": -1.0}, "--hardness is -1.0"),
        ("simclr", {"momentum": 1.5}, "--momentum is 1.5"),
        ("two_tower", {"item_column": "thing"}, "no column thing; there are user_id, item_id, timestamp"),
        ("two_tower", {"time_column": "when"}, "--time-column when"),
        ("two_tower", {"compare": "pairs"}, "--compare pairs does not go with --recipe two_tower"),
        ("two_tower", {"val_data": "x"}, "--val-data does not go with --recipe two_tower"),
        ("two_tower", {"momentum": 0.9}, "--momentum makes keys of second views, which --compare interactions"),
        ("two_tower", {"captions": "all"}, "--captions all is of pictures with captions"),
        ("clip", {"compare": "interactions"}, "pass --recipe two_tower"),
        ("simclr", {"negatives": "swap"}, "--negatives swap finds texts"),
        ("moco", {"queue": 0}, "--queue is 0, so a view has no negatives"),
        ("moco", {"objective": "triplet"}, "which --objective triplet does not look at"),
        ("clip", {"scale_init": 33.0, "scale_max": 20.0}, "--scale-init 33 is above --scale-max 20"),
        ("two_tower", {"scale_init": 101.0}, "--scale-init 101 is above --scale-max 100"),
        (
            "clip",
            {"negatives": "column", "batch_size": 8},
            "none of its first 40 samples has a negative; give a column",
        ),
        ("simcse", {"negatives": "column", "train_data": "SENTENCES"}, "none of its first 2 samples has a negative"),
        (
            "clip",
            {"objective": "global", "train_data": "PIPE"},
            r"pipe:cat .*\.tar: --objective global remembers samples",
        ),
        ("byol", {"queue": 4096}, "--queue 4096 holds negatives, which --objective cosine has not: pass --queue 0"),
        ("simclr", {"predictor": 512}, "--predictor 512 predicts a momentum encoder's views, and there is none"),
        ("slip", {"predictor": 8}, "--predictor 8 .* there is none"),
        ("simclr", {"objective": "sigmoid"}, "needs a bias, which --compare views has not: pass --objective infonce$"),
        ("supcon", {"siglip": True}, "which --compare labels has not: pass --objective infonce --no-siglip"),
        ("moco", {"objective": "sigmoid"}, "which --compare views has not"),
        ("byol", {"objective": "sigmoid"}, "which --compare views has not"),
        ("slip", {"objective": "sigmoid"}, r"which --compare pairs\+views has not"),
        ("two_tower", {"siglip": True}, "which --compare interactions has not"),
        ("starter", {"siglip": True}, "needs a bias, which the starter has not"),
        ("siglip", {"objective": "infonce"}, "--siglip is --objective sigmoid, but --objective is infonce: leave it"),
        ("siglip", {"objective": "hard"}, "--objective is hard"),
        ("clip", {"siglip": True, "objective": "global"}, "--objective is global: leave it out or pass --no-siglip"),
        ("margin", {"siglip": True}, "--objective is margin"),
        ("two_tower", {"train_data": "FOLDER"}, "classes.*: a folder; give one table"),
        ("supcon", {"train_data": "UNLABELLED"}, "none of its first 3 samples has a label"),
        ("clip", {"train_data": "PICTURES"}, "none of its first 3 samples has a caption; put KEY.txt beside KEY.jpg"),
        ("slip", {"train_data": "PICTURES"}, "none of its first 3 samples has a caption"),
    ],
)
def test_what_does_not_fit_is_said(
    recipe: str, settings: dict[str, Any], words: str, classes: Path, interactions: Path, tmp_path: Path
) -> None:
    data = interactions if recipe == "two_tower" else classes
    tiny = (
        {} if recipe == "two_tower" or "text_model" in settings else {"model": str(make_config(tmp_path / "tiny.json"))}
    )
    if settings.get("train_data") == "UNLABELLED":
        (tmp_path / "captions.csv").write_text(
            "filepath,caption\n" + "".join(f"{path},a picture\n" for path in sorted(classes.rglob("*.png"))[:3])
        )
        settings = {**settings, "train_data": str(tmp_path / "captions.csv"), "batch_size": 2}
    if settings.get("train_data") == "FOLDER":
        settings = {**settings, "train_data": str(classes)}
    if settings.get("train_data") == "PICTURES":
        with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
            for path in sorted(classes.rglob("*.png"))[:3]:
                tar.add(path, f"{path.parent.name}-{path.name}")
        settings = {**settings, "train_data": str(tmp_path / "pictures.tar"), "batch_size": 2}
    if settings.get("train_data") == "PIPE":
        settings = {**settings, "train_data": f"pipe:cat {tmp_path / 'x.tar'}", "max_steps": 1}
    if settings.get("train_data") == "SENTENCES":
        (tmp_path / "pairs.csv").write_text("anchor,positive\na,b\nc,d\n")
        settings = {**settings, "train_data": str(tmp_path / "pairs.csv"), "batch_size": 2}
    with pytest.raises(ClipkitError, match=words):
        clipkit.train(recipe, **{"train_data": str(data), "output": str(tmp_path / "run"), **tiny, **settings})
    assert not (tmp_path / "run").exists(), "nothing half-made remains"


def test_sentences_alone_need_a_tower_with_dropout(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("\n".join(f"sentence {i}" for i in range(20)), encoding="utf-8")
    settings = {"train_data": str(tmp_path / "s.txt"), "model": str(make_config(tmp_path / "tiny.json"))}
    with pytest.raises(ClipkitError, match=r"s\.txt: a sentence alone .* the text tower has none; pass a --text-model"):
        clipkit.train("simcse", **settings, batch_size=8, output=str(tmp_path / "run"))
