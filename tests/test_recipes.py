"""The recipes run and learn, and take their data in every form that the help names."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "training"))

from training_helpers import COLOURS, SHAPES, draw, flags, make_config, make_table, records

from clipkit.config import Config
from clipkit.data_option import open_data, pairs_from_config
from clipkit.errors import ClipkitError
from clipkit.recipes import RECIPES, find_recipe


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_table(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize(
    "recipe", ["clip", pytest.param("siglip", marks=pytest.mark.slow), pytest.param("lit", marks=pytest.mark.slow)]
)
def test_the_loss_falls(recipe: str, table: Path, tmp_path: Path) -> None:
    from clipkit.train import main

    run = tmp_path / "run"
    settings = {
        "recipe": recipe, "train_data": table, "model": make_config(tmp_path / "tiny.json"), "output": run,
        "batch_size": 20, "epochs": 20 if recipe == "siglip" else 10, "lr": 3e-3, "log_every": 1, "workers": 0,
    }  # fmt: skip
    assert main(flags(settings)) == 0
    train = records(run, "train")
    first, last = (sum(r["loss"] for r in part) / 3 for part in (train[:3], train[-3:]))
    assert last < 0.75 * first, (first, last)
    assert ("bias" in train[0]) == (recipe == "siglip")
    if recipe == "siglip":
        assert train[-1]["bias"] != train[0]["bias"], "the bias learns"
        assert train[0]["scale"] == pytest.approx(10, rel=0.05)
    else:
        assert train[0]["scale"] == pytest.approx(1 / 0.07, rel=0.05)
    import clipkit

    model = clipkit.load(run, device="cpu")
    assert model.kind == ("sigmoid" if recipe == "siglip" else "softmax")
    pictures = [table.parent / f"{i:03d}.png" for i in range(0, 60, 2)]
    captions = [f"a {colour} {shape}" for shape in SHAPES for colour in list(COLOURS)[::2]]
    cosines = model.similarity(pictures, captions)
    above = (cosines.diagonal()[:, None] > cosines).mean()
    assert above > 0.65, f"a picture is nearer to its own caption than to {above:.0%} of them all"


def test_the_siglip_flag_is_the_siglip_recipe() -> None:
    clip, siglip = find_recipe("clip"), find_recipe("siglip")
    assert not clip.defaults.optim.siglip and siglip.defaults.optim.siglip
    config = clip.defaults.replace(siglip=True)
    assert clip.objective(config) is siglip.objective(siglip.defaults)


def test_lit_locks_the_image_tower_only(tmp_path: Path) -> None:
    recipe = find_recipe("lit")
    model = recipe.encoders(recipe.defaults.replace(model=str(make_config(tmp_path / "tiny.json"))))
    assert model.image.locked and not model.text.locked
    assert recipe.defaults.data.augment != "crop", "so that every picture is encoded once"


def test_fresh_weights_are_a_function_of_the_seed(tmp_path: Path) -> None:
    clip = find_recipe("clip")
    config = clip.defaults.replace(model=str(make_config(tmp_path / "tiny.json")))
    one, two, other = (clip.encoders(config.replace(seed=s)).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_every_recipe_says_what_it_is() -> None:
    assert {"starter", "clip", "siglip", "lit"} <= set(RECIPES)
    for name, recipe in RECIPES.items():
        assert recipe.name == name == recipe.defaults.recipe and recipe.summary and "\n" not in recipe.summary


def test_an_unknown_recipe() -> None:
    with pytest.raises(ClipkitError, match="clip"):
        find_recipe("clipp")
    with pytest.raises(ClipkitError, match="starter, clip, siglip, lit"):
        find_recipe("zzzzzz")


def make_tar(path: Path, n: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(n):
            buffer = io.BytesIO()
            draw("red", "left", i).save(buffer, "PNG")
            for name, data in ((f"{i}.png", buffer.getvalue()), (f"{i}.txt", f"number {i}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def opened(data: Any, **settings: Any) -> Any:
    return pairs_from_config(Config().replace(train_data=str(data), **settings))


def test_data_as_shards(tmp_path: Path) -> None:
    for name in ("000.tar", "001.tar"):
        make_tar(tmp_path / "flat" / name, 5)
    assert len(opened(tmp_path / "flat").train) == 10
    assert len(opened(tmp_path / "flat" / "000.tar").train) == 5
    assert len(opened(tmp_path / "flat" / "*.tar").train) == 10
    assert len(opened(str(tmp_path / "flat" / "{000..001}.tar")).train) == 10
    assert opened(tmp_path / "flat").held_out == {}


def test_splits_beside_one_another(tmp_path: Path) -> None:
    for split, n in (("train", 6), ("val", 3), ("test", 2)):
        make_tar(tmp_path / "set" / split / "000.tar", n)
    pairs = opened(tmp_path / "set")
    assert len(pairs.train) == 6 and {k: len(v) for k, v in pairs.held_out.items()} == {"val": 3, "test": 2}
    pairs = opened(tmp_path / "set", val_data=str(make_tar(tmp_path / "mine.tar", 4)))
    assert {k: len(v) for k, v in pairs.held_out.items()} == {"val": 4}, "what was asked for wins"


def test_the_val_split_beside_a_train_folder(tmp_path: Path) -> None:
    """The help of --val-data: "Default: the `val` split beside `train`, if there is one"."""
    for split, n in (("train", 6), ("val", 3)):
        make_tar(tmp_path / "set" / split / "000.tar", n)
    pairs = opened(tmp_path / "set" / "train")
    assert len(pairs.train) == 6 and {k: len(v) for k, v in pairs.held_out.items()} == {"val": 3}


@pytest.mark.parametrize("names", [("training", "validation"), ("Train", "valid"), ("train", "Val")])
def test_splits_under_their_longer_names(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, n in zip(names, (6, 3), strict=True):
        make_tar(tmp_path / "set" / name / "000.tar", n)
    make_tar(tmp_path / "set" / "other" / "000.tar", 9)
    for data in (tmp_path / "set", tmp_path / "set" / names[0]):
        pairs = opened(data)
        assert len(pairs.train) == 6 and {k: len(v) for k, v in pairs.held_out.items()} == {"val": 3}
    assert len(opened(tmp_path / "set" / "other").train) == 9


def test_two_folders_of_one_split_are_told(tmp_path: Path) -> None:
    for name, n in (("train", 6), ("val", 3), ("validation", 2), ("test", 4)):
        make_tar(tmp_path / "set" / name / "000.tar", n)
    both = "val and validation are both the split val; name the one that is meant"
    for data in (tmp_path / "set", tmp_path / "set" / "train"):
        with pytest.raises(ClipkitError, match=f"{tmp_path / 'set'}: {both}"):
            opened(data)
    pairs = opened(tmp_path / "set" / "train", val_data=str(tmp_path / "set" / "validation"))
    assert len(pairs.train) == 6 and {k: len(v) for k, v in pairs.held_out.items()} == {"val": 2}


def test_data_as_tables(table: Path, tmp_path: Path) -> None:
    rows = [line.split(",") for line in table.read_text().splitlines()[1:21]]
    tsv, jsonl, parquet = (table.parent / f"some.{end}" for end in ("tsv", "jsonl", "parquet"))
    tsv.write_text("image\ttitle\n" + "".join(f"{p}\t{c}\n" for p, c in rows))
    jsonl.write_text("".join(json.dumps({"image": p, "caption": c}) + "\n" for p, c in rows))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": [p for p, _ in rows], "text": [c for _, c in rows]}), parquet)
    fingerprints = set()
    for path in (table, tsv, jsonl, parquet):
        train = opened(path).train
        assert len(train) == (60 if path == table else 20), path
        assert train.name == str(path), "messages name the table, not the cache"
        caption = train.read_captions(0)[0]
        assert caption.startswith("a ")
        fingerprints.add(train.fingerprint)
    assert opened(table).train.fingerprint in fingerprints, "the same table, the same data"


def test_columns_of_ones_own(table: Path) -> None:
    odd = table.parent / "odd.csv"
    odd.write_text("datei;beschreibung\n" + "".join(f"{i:03d}.png;nummer {i}\n" for i in range(8)))
    train = opened(odd, image_column="datei", caption_column="beschreibung", separator=";").train
    assert len(train) == 8 and train.read_captions(3) in [(f"nummer {i}",) for i in range(8)]
    with pytest.raises(ClipkitError, match="titel") as caught:
        opened(odd, image_column="datei", caption_column="titel")
    assert "beschreibung" in str(caught.value) and "odd.csv" in str(caught.value)


def test_a_table_away_from_its_pictures_in_another_encoding(table: Path, tmp_path: Path) -> None:
    """What the messages about such a table tell people to pass."""
    latin = tmp_path / "latin.csv"
    latin.write_bytes("".join(["image,caption\n", *(f"{i:03d}.png,café {i}\n" for i in range(8))]).encode("latin-1"))
    with pytest.raises(ClipkitError, match="--encoding"):
        opened(latin)
    with pytest.raises(ClipkitError, match="--image-root"):
        opened(latin, encoding="latin-1")
    train = opened(latin, encoding="latin-1", image_root=str(table.parent)).train
    assert len(train) == 8 and "café" in train.read_captions(0)[0]


def test_data_as_a_folder_of_classes(tmp_path: Path) -> None:
    for colour in ("red", "blue"):
        (tmp_path / "photos" / colour).mkdir(parents=True)
        for i in range(3):
            draw(colour, "plain", i).save(tmp_path / "photos" / colour / f"{i}.png")
    train, _ = open_data(str(tmp_path / "photos"), Config(), "train")
    assert len(train) == 6
    assert {c for i in range(6) for c in ("red", "blue") if c in train.read_captions(i)[0]} == {"red", "blue"}
    assert {train.read_record(i)[0]["label"] for i in range(6)} == {"red", "blue"}


@pytest.mark.parametrize("name", ["nowhere.csv", "nowhere", "no/such/{000..003}.tar", "none*.tar"])
def test_data_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClipkitError) as caught:
        opened(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_no_data_at_all() -> None:
    with pytest.raises(ClipkitError, match="--train-data"):
        pairs_from_config(Config())


def test_folders_and_files_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("filepath,caption\n")
    (tmp_path / "odd.xyz").write_text("what is this")
    tarfile.open(tmp_path / "empty.tar", "w").close()
    for name in ("empty", "empty.csv", "header.csv", "odd.xyz", "empty.tar"):
        with pytest.raises(ClipkitError) as caught:
            opened(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
