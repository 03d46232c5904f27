"""Every method of the family trains, goes on where it stopped, and its model can be used."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "training"))

from training_helpers import (
    COLOURS,
    draw,
    finish,
    make_classes,
    make_config,
    make_interactions,
    make_table,
    records,
    start,
)

import clipkit
from clipkit.errors import ClipkitError
from clipkit.recipes import RECIPES, find_recipe


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("clipkit.training.precision._measure", lambda setting: (1.0, 1e-7))
        yield


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_table(tmp_path_factory.mktemp("pictures"), 40)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classes(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sentences") / "pairs.csv"
    rows = [(f"a {c} bird {i}", f"the bird {i} is {c}", f"a {c} cat {i}") for c in COLOURS for i in range(3)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("anchor", "positive", "negative"), *rows])
    return path


@pytest.fixture(scope="module")
def interactions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_interactions(tmp_path_factory.mktemp("interactions"))


@pytest.fixture
def basics(table: Path, classes: Path, sentences: Path, interactions: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of each recipe for tiny data."""
    small = make_config(tmp_path / "tiny.json")
    picture = {"image_model": "test_resnet", "image_pretrained": False, "image_size": 32, "projector_hidden": 16,
               "projector_dim": 8, "val_data": str(classes), "train_data": str(classes)}  # fmt: skip
    words = {"model": str(small), "train_data": str(sentences), "lr": 1e-3, "epochs": 9}
    pairs = {"model": str(small), "train_data": str(table), "val_data": str(table)}
    return {
        "simclr": picture, "moco": {**picture, "queue": 24}, "byol": {**picture, "predictor": 8}, "supcon": picture,
        "slip": {**pairs, "projector_hidden": 16, "projector_dim": 8}, "margin": pairs, "triplet": pairs,
        "simcse": {**words, "negatives": "column"},
        "two_tower": {"train_data": str(interactions), "embed_dim": 16},
        "clip, swapped negatives": {**pairs, "negatives": "swap"},
        "clip, mined negatives": {**pairs, "negatives": "mined"},
        "simcse, mined": {**words, "negatives": "mined"},
        "clip, hard": {**pairs, "objective": "hard", "debias": 0.05},
        "simclr, hard": {**picture, "objective": "hard", "hardness": 0.5},
        "clip, global": {**pairs, "objective": "global", "gamma": 0.4, "gamma_falling": True},
        "triplet, labels": {**picture, "compare": "labels", "mining": "semihard"},
    }  # fmt: skip


METHODS = (
    "simclr", "moco", "byol", "supcon", "slip", "margin", "triplet", "simcse", "two_tower", "clip, swapped negatives",
    "clip, mined negatives", "simcse, mined", "clip, hard", "simclr, hard", "clip, global", "triplet, labels",
)  # fmt: skip


def test_every_recipe_has_a_test() -> None:
    assert {name.split(",")[0] for name in METHODS} | {"starter", "clip", "siglip", "lit"} == set(RECIPES)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if "," in n else []) for n in METHODS])
def test_it_trains_resumes_and_is_used(name: str, basics: dict[str, Any], tmp_path: Path) -> None:
    settings = {"batch_size": 16, "max_steps": 4, "save_every": 2, "keep_last": 9, "log_every": 1, "workers": 0,
                "eval_every": 4, **basics[name]}  # fmt: skip
    recipe = name.split(",")[0]
    run = clipkit.train(recipe, **settings, output=str(tmp_path / "run"))
    losses = [r["loss"] for r in records(run, "train")]
    assert len(losses) == 4 and len(set(losses)) == 4 and np.isfinite(losses).all()
    guarded = recipe in ("clip", "slip", "margin", "triplet", "simcse") and "labels" not in name
    assert all(("cleared" in r) == guarded for r in records(run, "train")), "the guard's cells, not the method's"
    constant = {"simclr": 10, "moco": 5, "byol": 10, "supcon": 10, "simcse": 20}.get(recipe)
    assert constant is None or records(run, "train")[-1]["scale"] == pytest.approx(constant)

    # A copy of the run as it was when it was killed after its second step ends with the same bits.
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "step-4")
    clipkit.train(recipe, **settings, output=str(again), resume="auto")
    assert [r["loss"] for r in records(again, "train")] == losses
    for file in ("model.safetensors", "memory.safetensors"):
        one, two = (r / "checkpoints" / "step-4" / file for r in (run, again))
        assert one.is_file() == two.is_file() and (not one.is_file() or one.read_bytes() == two.read_bytes())

    assert (run / "report.html").is_file()
    model = clipkit.load(run, device="cpu")
    if model.model.image is not None and recipe != "two_tower":
        rows = model.encode_image([draw("red", "plain", 1), draw("blue", "top", 2)])
        assert rows.shape == (2, model.embed_dim) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    if model.model.has_tokenizer:
        assert model.encode_text(["a red bird"]).shape == (1, model.embed_dim)
    else:
        with pytest.raises(ClipkitError, match="has no"):
            model.encode_text(["a red bird"])
    figures = json.loads((run / "evaluation.json").read_text()) if (run / "evaluation.json").is_file() else {}
    wanted = {"simclr": "neighbours", "two_tower": "recommendation", "slip": "retrieval"}.get(recipe)
    assert wanted is None or wanted in figures
    if recipe != "two_tower":
        assert any(r["kind"] == "health" for r in records(run)), "the space is looked at"


@pytest.mark.slow
def test_two_tower_learns_tastes_and_beats_popularity(
    interactions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = clipkit.train(
        "two_tower", train_data=str(interactions), embed_dim=16, batch_size=64, epochs=12, lr=1e-2,
        output=str(tmp_path / "run"),
    )  # fmt: skip
    found = json.loads((run / "evaluation.json").read_text())
    assert found["recommendation"]["n_users"] == 80 and found["recommendation"]["n_items"] == 40
    mine, popular = (found[name]["recall"]["10"]["value"] for name in ("recommendation", "popularity"))
    assert mine > 0.6 > popular, "ten items of the right taste, of which seven are known"
    from clipkit.cli import main

    assert main(["evaluate", str(run), "--output", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["recommendation"] == {k: v for k, v in found["recommendation"].items() if k != "baseline"}
    assert "the last item of 80 users among 40 items" in capsys.readouterr().out
    for wrong in (["--data", str(interactions)], ["--probe", str(tmp_path)]):
        assert main(["evaluate", str(run), *wrong]) == 2
        assert "users and items" in capsys.readouterr().err
    with pytest.raises(ClipkitError, match="users and items, not pictures"):
        clipkit.load(run, device="cpu").encode_image([draw("red", "plain", 1)])


def test_a_picture_tables_negatives_are_found_by_the_names_of_sentences(tmp_path: Path) -> None:
    from clipkit.training.data import training_reader

    rows = [(f"{c}.png", f"a {c} square", f"a {c} circle") for c in list(COLOURS)[:3]]
    for name, _, _ in rows:
        draw(name.partition(".")[0], "square").save(tmp_path / name)
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filepath", "caption", "Hard_Negative"), *rows])
    recipe = find_recipe("clip")
    config = recipe.defaults.replace(
        model=str(make_config(tmp_path / "tiny.json")), train_data=str(tmp_path / "c.csv"), negatives="column"
    )
    pairs, model = recipe.pairs(config), recipe.encoders(config)
    batch = training_reader(model, pairs.train, config)([(0, i) for i in range(3)])
    assert batch.text_ids.tolist() == [0, -1, 1, -2, 2, -3]


def test_the_temperature_of_two_tower_starts_where_it_is_told(basics: dict[str, Any], tmp_path: Path) -> None:
    for scale_init, wanted in ((None, 1 / 0.07), (33.0, 33.0)):
        recipe = find_recipe("two_tower")
        model = recipe.encoders(recipe.defaults.replace(**basics["two_tower"], scale_init=scale_init))
        assert model.log_scale.exp().item() == pytest.approx(wanted)


def test_swapped_negatives_are_keys_that_belong_to_nobody(basics: dict[str, Any], tmp_path: Path) -> None:
    from clipkit.training.data import training_reader

    recipe = find_recipe("clip")
    config = recipe.defaults.replace(**basics["clip, swapped negatives"], batch_size=8)
    pairs, model = recipe.pairs(config), recipe.encoders(config)
    batch = training_reader(model, pairs.train, config)([(0, i) for i in range(8)])
    assert batch.texts is not None and len(batch.texts) > 8 == len(batch.image_ids)
    (table,) = recipe.compare(config)(model(batch.images, batch.texts), batch, "gather")
    assert table.positives().sum() == 8
    negative = batch.text_ids < 0
    assert negative.any() and not table.positives()[:, negative].any() and table.counts()[:, negative].any()


def test_the_guard_clears_captions_that_say_the_same_and_those_of_copies(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    captions = ["A red square.", "a red  square", "a blue square", "two birds", "Two Birds!", "a tree"] * 2
    with (folder / "c.csv").open("w", newline="") as file:
        rows = []
        for i, caption in enumerate(captions):
            draw(list(COLOURS)[i % 10], "plain", i).save(folder / f"{i}.png")
            rows.append((f"{i}.png", caption))
        csv.writer(file).writerows([("filepath", "caption"), *rows])
    settings = {"model": str(make_config(tmp_path / "tiny.json")), "train_data": str(folder / "c.csv"), "workers": 0,
                "batch_size": 12, "max_steps": 2, "log_every": 1, "augment": "none"}  # fmt: skip
    on = clipkit.train("clip", **settings, output=str(tmp_path / "on"))
    off = clipkit.train("clip", **settings, guard=False, output=str(tmp_path / "off"))
    both = clipkit.train("triplet", **settings, output=str(tmp_path / "both"))
    # four captions of "a red square", four of "two birds", two of either other: cells of unequal ids among each;
    # and the first two pictures are the last two again, with other captions
    assert [r["cleared"] for r in records(on, "train")] == [2 * 12 + 2 * 2 + 2 * 2] * 2
    assert all("cleared" not in r for r in records(off, "train"))
    assert [r["cleared"] for r in records(both, "train")] == [28 + 4] * 2, "a pair counts once, whichever of it asks"
    assert records(on, "train")[0]["loss"] < records(off, "train")[0]["loss"]


def test_gamma_falls_during_the_first_half_of_a_run(
    tmp_path: Path, basics: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipkit.objectives import GlobalContrastive

    seen: list[float] = []
    forward = GlobalContrastive.forward
    monkeypatch.setattr(GlobalContrastive, "forward", lambda self, *x: seen.append(self.gamma) or forward(self, *x))
    settings = {**basics["clip, global"], "batch_size": 16, "epochs": 4, "workers": 0, "output": str(tmp_path / "run")}
    clipkit.train("clip", **settings)
    n = 40  # pairs of the table
    assert seen == pytest.approx([(1, 0.7, 0.4, 0.4)[16 * step // n] for step in range(len(seen))])
    assert len(seen) == 4 * n // 16


def test_the_guard_clears_sentences_that_say_the_same(tmp_path: Path) -> None:
    rows = [("a dog runs", "the dog is running"), ("A dog runs.", "a cat sleeps"), ("it rains", "A dog runs"),
            ("it snows", "snow falls")]  # fmt: skip
    with (tmp_path / "s.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("sentence1", "sentence2"), *rows])
    from clipkit.training.data import training_reader

    recipe = find_recipe("simcse")
    config = recipe.defaults.replace(model=str(make_config(tmp_path / "tiny.json")), train_data=str(tmp_path / "s.csv"))
    pairs, model = recipe.pairs(config), recipe.encoders(config)
    reader, read = training_reader(model, pairs.train, config), []

    def texts(chosen: list[tuple[int, int, str]]) -> torch.Tensor:
        read[:] = [caption.lower().strip(".") for _, _, caption in chosen]
        assert reader.texts is not None
        return reader.texts(chosen)

    cleared = 0
    for epoch in range(4):  # which of the two is first is drawn anew
        batch = replace(reader, texts=texts)([(epoch, i) for i in range(4)])
        (table,) = recipe.compare(config)(model(None, batch.texts), batch, "gather")
        samples, seconds = list(zip(read[0::2], read[1::2], strict=True)), read[1::2]
        for i, said in enumerate(samples):
            for j, text in enumerate(seconds):
                assert bool(table.counts()[i, j]) == (i == j or text not in said), (said, text)
        cleared += table.cleared()
    assert cleared, "some epoch compares a dog with the same dog"


def test_the_triplet_recipe_is_vse_plus_plus(basics: dict[str, Any]) -> None:
    """Both directions, each query's hardest negative; squared distances of unit vectors, 2 - 2 cos."""
    from clipkit.training.data import training_reader
    from clipkit.training.step import step_loss

    recipe = find_recipe("triplet")
    config = recipe.defaults.replace(**basics["triplet"], margin=0.3, guard=False)
    pairs, model = recipe.pairs(config), recipe.encoders(config)
    batch = training_reader(model, pairs.train, config)([(0, i) for i in range(9)])
    embeddings = model(batch.images, batch.texts)
    loss = step_loss(embeddings, batch, recipe.compare(config), recipe.objective(config))
    assert embeddings.images is not None and embeddings.texts is not None
    d = 2 - 2 * (embeddings.images.double() @ embeddings.texts.double().T)
    own = d.diagonal()
    others = d + torch.full((9,), torch.inf, dtype=d.dtype).diag()
    wanted = sum((own - others.amin(dim) + 0.3).clamp(min=0).mean() for dim in (0, 1))
    assert loss.item() == pytest.approx(float(wanted), rel=1e-5)


def test_triplets_of_slip_are_of_both_ways_and_of_views(basics: dict[str, Any]) -> None:
    from clipkit.training.data import training_reader

    recipe = find_recipe("slip")
    config = recipe.defaults.replace(**basics["slip"], objective="triplet")
    pairs, model = recipe.pairs(config), recipe.encoders(config)
    batch = training_reader(model, pairs.train, config)([(0, i) for i in range(5)])
    e = model(batch.images, batch.texts)
    tables = recipe.compare(config)(e, batch, "gather")
    assert [(len(t.queries), t.itself) for t in tables] == [(5, False), (5, False), (10, True)]
    first, second, _ = tables
    assert first.queries is e.images and first.keys is e.texts
    assert second.queries is e.texts and second.keys is e.images


@pytest.mark.parametrize("name", METHODS)
def test_its_reader_can_be_sent_to_a_spawned_process(name: str, basics: dict[str, Any]) -> None:
    from clipkit.training.data import training_reader

    recipe = find_recipe(name.split(",")[0])
    config = recipe.defaults.replace(**basics[name])
    reader = training_reader(recipe.encoders(config), recipe.pairs(config).train, config)
    items = [(0, i) for i in range(5)]
    here, there = reader(items), pickle.loads(pickle.dumps(reader))(items)
    for field in fields(here):
        mine, sent = getattr(here, field.name), getattr(there, field.name)
        assert torch.equal(mine, sent) if isinstance(mine, torch.Tensor) else mine == sent, field.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slip", "moco", "simcse", "two_tower", "clip, mined negatives", "clip, global"])
def test_two_processes_are_one(name: str, basics: dict[str, Any], tmp_path: Path) -> None:
    settings = {"recipe": name.split(",")[0], "batch_size": 15, "max_steps": 3, "log_every": 1, "workers": 0,
                "optimizer": "sgd", "lr": 1e-2, "eval_every": 3, **basics[name]}  # fmt: skip
    for run, launcher in (("one", "forked"), ("two", "forked 2")):
        status, _, err = finish(start({**settings, "output": str(tmp_path / run)}, launcher))
        assert status == 0, err[-3000:]
    one, two = ([r["loss"] for r in records(tmp_path / run, "train")] for run in ("one", "two"))
    assert len(one) == 3 and two == pytest.approx(one, rel=2e-4) and two[0] == pytest.approx(one[0], rel=1e-5)
    assert [records(tmp_path / run, "start")[0]["processes"] for run in ("one", "two")] == [1, 2]


def test_shards_of_pictures_and_class_numbers(tmp_path: Path, classes: Path) -> None:
    """What other tools write for classes trains where no caption is compared, though the first json is damaged."""
    pictures = sorted(classes.rglob("*.png"))[:8]
    for name in ("labelled", "alone"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for n, path in enumerate(pictures):
                tar.add(path, f"{n:03d}.png")
                for ending, said in (("cls", str(n % 2)), ("json", "" if n else "{")):
                    if name == "labelled" and said:
                        info = tarfile.TarInfo(f"{n:03d}.{ending}")
                        info.size = len(said)
                        tar.addfile(info, io.BytesIO(said.encode()))
    settings = {"batch_size": 4, "max_steps": 2, "model": str(make_config(tmp_path / "tiny.json"))}
    for recipe, name in (("supcon", "labelled"), ("simclr", "labelled"), ("simclr", "alone")):
        output = tmp_path / f"{recipe}-{name}"
        clipkit.train(recipe, **settings, train_data=str(tmp_path / f"{name}.tar"), output=str(output))
        assert [r["step"] for r in records(output, "train")] == [1, 2]


def test_a_folder_or_table_of_pictures_alone(tmp_path: Path, classes: Path) -> None:
    """Pictures that nobody has described or sorted are enough where views are compared, and labels for supcon."""
    (tmp_path / "photos").mkdir()
    rows = [("filepath", "label")]
    for n, path in enumerate(sorted(classes.rglob("*.png"))[::5]):
        shutil.copy(path, tmp_path / "photos" / f"{n}.png")
        rows.append((f"{n}.png", path.parent.name))
    with (tmp_path / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    settings = {"batch_size": 4, "max_steps": 2, "model": str(make_config(tmp_path / "tiny.json"))}
    for recipe, name in (("simclr", "photos"), ("byol", "photos"), ("supcon", "photos.csv")):
        more = {"image_root": str(tmp_path / "photos")} if name == "photos.csv" else {}
        clipkit.train(recipe, **settings, **more, train_data=str(tmp_path / name), output=str(tmp_path / recipe))
        assert [r["step"] for r in records(tmp_path / recipe, "train")] == [1, 2]
    with pytest.raises(ClipkitError, match=r"photos: the pictures have no captions.*--recipe simclr"):
        clipkit.train("clip", **settings, train_data=str(tmp_path / "photos"), output=str(tmp_path / "clip"))
    with pytest.raises(ClipkitError, match="none of its first 8 samples has a label"):
        clipkit.train("supcon", **settings, train_data=str(tmp_path / "photos"), output=str(tmp_path / "bare"))
