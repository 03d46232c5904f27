"""``clipkit evaluate``: runs, tables, class folders, and what the towers have learned."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "training"))

from training_helpers import draw, make_table

Cli = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def mistake_after(cli: Cli) -> Callable[..., str]:
    """The one line of a mistake that is found after something has been said."""

    def call(*arguments: Any) -> str:
        status, out, err = cli(*arguments)
        assert status == 2 and err.startswith("clipkit: ") and err.count("\n") == 1, (status, out, err)
        return err

    return call


def test_evaluate_a_run(cli: Cli, run: Path, tmp_path: Path) -> None:
    status, out, err = cli("evaluate", run, "--output", tmp_path / "figures.json")
    assert status == 0 and err == ""
    assert "recall@1" in out and "chance" in out and "60" in out
    figures = json.loads((tmp_path / "figures.json").read_text())
    own = json.loads((run / "evaluation.json").read_text())["retrieval"]
    for way in ("image_to_text", "text_to_image"):
        for k in ("1", "5", "10"):
            assert figures["retrieval"][way][k]["value"] == pytest.approx(own[way][k]["value"], abs=0.02)
    assert figures["retrieval"]["image_to_text"]["10"]["value"] > 0.3, "it knows what it was trained on"


def test_evaluate_a_table(cli: Cli, run: Path, tmp_path: Path) -> None:
    table = make_table(tmp_path / "data", 20, noise=3, bad=[4])
    status, out, _ = cli("evaluate", run, "--data", table, "--output", tmp_path / "figures.json")
    assert status == 0 and "recall@1" in out
    assert "004.png" in out, "what could not become a sample is named"
    assert json.loads((tmp_path / "figures.json").read_text())["retrieval"]["n_images"] == 19


def test_evaluate_classes(cli: Cli, run: Path, tmp_path: Path) -> None:
    for colour in ("red", "blue", "green"):
        (tmp_path / "photos" / f"{colour} plain").mkdir(parents=True)
        for i in range(4):
            draw(colour, "plain", i).save(tmp_path / "photos" / f"{colour} plain" / f"{i}.png")
    status, out, _ = cli(
        "evaluate", run, "--data", tmp_path / "photos", "--templates", "a {}", "--output", tmp_path / "figures.json"
    )
    assert status == 0 and "zero-shot" in out and "majority" in out and "chance" in out
    zero = json.loads((tmp_path / "figures.json").read_text())["zero_shot"]
    assert zero["chance"] == pytest.approx(1 / 3) and zero["top1"]["value"] > 0.6
    assert "retrieval" not in json.loads((tmp_path / "figures.json").read_text()), "labels are not captions"


def test_the_split_that_is_measured(cli: Cli, mistake_after: Any, run: Path, tmp_path: Path) -> None:
    """Held-out pictures, if the data has any; a folder of shards that is named itself is taken as it is."""
    for split, shape, colours in (("train", "left", ("red", "blue")), ("val", "top", ("red", "cyan"))):
        for colour in colours:
            (tmp_path / "photos" / split / colour).mkdir(parents=True)
            for i in range(3):
                draw(colour, shape, noise=i).save(tmp_path / "photos" / split / colour / f"{i}.png")
    assert cli("prepare", tmp_path / "photos", tmp_path / "shards")[0] == 0

    def classes(data: str, *flags: str) -> set[str]:
        status, _, err = cli("evaluate", run, "--data", tmp_path / data, "--output", tmp_path / "found.json", *flags)
        assert status == 0, err
        return set(json.loads((tmp_path / "found.json").read_text())["zero_shot"]["class_names"])

    for data in ("photos", "shards"):
        assert classes(data) == classes(data, "--split", "val") == {"red", "cyan"}
        assert classes(data, "--split", "train") == {"red", "blue"}
        said = mistake_after("evaluate", run, "--data", tmp_path / data, "--split", "test")
        assert "has no test split (it has val, train)" in said
    assert classes("shards/train") == {"red", "blue"}


def coloured(folder: Path, count: int, noise: int = 0) -> Path:
    """A folder with a folder of ``count`` pictures for each of three colours."""
    for colour in ("red", "blue", "green"):
        (folder / colour).mkdir(parents=True)
        for i in range(count):
            draw(colour, "square", noise + i).save(folder / colour / f"{i}.png")
    return folder


def test_the_health_of_the_space(cli: Cli, run: Path, tmp_path: Path) -> None:
    status, out, _ = cli("evaluate", run, "--output", tmp_path / "figures.json")
    space = json.loads((tmp_path / "figures.json").read_text())["space"]
    assert status == 0 and all(f"the space: {sentence}" in out for sentence in space["sentences"])
    assert space["images"]["n"] == space["texts"]["n"] == 60 and space["images"]["embed_dim"] == 24
    assert space["alignment"] < space["distance"], "it knows its pairs"


def test_probes_on_class_folders(cli: Cli, run: Path, tmp_path: Path) -> None:
    coloured(tmp_path / "photos" / "train", 6)
    coloured(tmp_path / "photos" / "val", 4, noise=100)
    (tmp_path / "photos" / "val" / "red" / "bad.png").write_bytes(b"no picture")
    status, out, err = cli("evaluate", run, "--probe", tmp_path / "photos", "--output", tmp_path / "figures.json")
    assert status == 0 and err == "" and "recall" not in out, "only what was asked for"
    probes = json.loads((tmp_path / "figures.json").read_text())["probes"]
    for kind in ("linear", "knn"):
        assert probes[kind]["top1"]["value"] > 0.8 and (probes[kind]["n_train"], probes[kind]["n_test"]) == (18, 12)
    assert "linear top-1" in out and "18 labelled pictures, 12 to test (val)" in out
    assert "bad.png" in out


def test_label_efficiency_on_class_folders(cli: Cli, run: Path, tmp_path: Path) -> None:
    coloured(tmp_path / "photos", 10)
    quick = ["--fractions", "0.2", "1", "--seeds", "2", "--epochs", "0", "--min-steps", "3"]
    status, out, _ = cli("evaluate", run, "--label-efficiency", tmp_path / "photos", *quick)
    assert status == 0 and "from scratch" in out and "24 labelled pictures, 6 to test (a fifth" in out
    found = json.loads((run / "label_efficiency.json").read_text())
    assert [(p["n_labels"], p["steps"]) for p in found["points"]] == [(6, 3), (24, 3)]
    assert len(found["points"][0]["scratch_seeds"]) == 2 and found["class_names"] == ["blue", "green", "red"]
    assert (run / "label_efficiency.png").read_bytes().startswith(b"\x89PNG")
    status, out, _ = cli(
        "evaluate", run, "--label-efficiency", tmp_path / "photos", *quick, "--output", tmp_path / "all.json"
    )
    assert status == 0 and (tmp_path / "all.png").is_file()
    assert json.loads((tmp_path / "all.json").read_text())["label_efficiency"]["points"] == found["points"]


def test_sentence_pairs(cli: Cli, run: Path, tmp_path: Path) -> None:
    rows = ["a red plain\ta red plain\t5", "a red plain\ta red left\t3", "a red plain\ta cyan top\t0"]
    (tmp_path / "sts.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    status, out, _ = cli("evaluate", run, "--sts", tmp_path / "sts.tsv", "--output", tmp_path / "figures.json")
    found = json.loads((tmp_path / "figures.json").read_text())["sts"]
    assert status == 0 and "Spearman" in out and "3 pairs" in out
    assert found["n_pairs"] == 3 and found["spearman"]["value"] >= 0.5, "the same sentence is nearest"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--sts gone.tsv", "gone.tsv"),
        ("--probe gone", "gone"),
        ("--probe TABLE", "has no label"),
        ("--label-efficiency PHOTOS --fractions 2", "fraction"),
        ("--label-efficiency PHOTOS --lr 0", "--lr is 0.0; it must be above 0"),
        ("--label-efficiency PHOTOS --seeds 0", "--seeds is 0"),
        ("--label-efficiency PHOTOS --epochs nan", "--epochs is nan"),
        ("--probe PHOTOS --split train", "--split train"),
        ("--probe PHOTOS --split test", "no split called test"),
    ],
)
def test_mistakes_in_what_was_learned(
    mistake_after: Any, run: Path, table: Path, tmp_path: Path, monkeypatch: Any, arguments: str, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"TABLE": table, "PHOTOS": coloured(tmp_path / "photos", 5)}
    assert named in mistake_after("evaluate", run, *[places.get(word, word) for word in arguments.split()])
