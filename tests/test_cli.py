"""The ``clipkit`` command: every verb's help, what it prints, and one line for every mistake."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "training"))

from training_helpers import ROOT, draw, make_config, make_table

from clipkit.cli import VERBS

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


# Help


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(cli: Cli, verb: str) -> None:
    for flag in ("--help", "-h"):
        status, out, err = cli(verb, flag)
        assert status == 0 and "usage" in out.lower() and err == ""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_help_lists_the_verbs(cli: Cli, arguments: list[str]) -> None:
    status, out, _ = cli(*arguments)
    assert status == 0
    for verb in ("prepare", "train", "evaluate", "embed", "index", "search", "classify", "match", "demo"):
        assert f"  {verb}" in out
    assert all(len(line) <= 100 for line in out.splitlines())


def test_version(cli: Cli) -> None:
    import clipkit

    assert cli("--version") == (0, f"clipkit {clipkit.__version__}\n", "")


def test_help_is_instant_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from clipkit.cli import main; main(['--help']); "
        "heavy = {'torch', 'numpy', 'PIL', 'tyro', 'transformers', 'gradio'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# Mistakes


def test_a_verb_that_is_none(mistake: Any) -> None:
    assert "search" in mistake("serch")
    assert "evaluate" in mistake("zzz")


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "a bird", "--kk", "3"], ["train", "--batchsize", "3"], ["evaluate", "--nope"],
        ["classify", "--lables", "a"], ["match"], ["index"], ["search"], ["search", "a", "-n", "many"],
        ["train", "--precision", "fp4"], ["train", "--batch-size", "ten"], ["prepare"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_flag_that_is_none_or_has_no_value(mistake: Any, arguments: list[str]) -> None:
    mistake(*arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--recipe", "siglib"], ["siglip"]),
        (["--recipe", "clip", "--train-data", "nowhere.csv"], ["nowhere.csv"]),
        (["--recipe", "clip"], ["--train-data"]),
        (["--train-data", "TABLE", "--model", "ViT-B-23"], ["ViT-B-32"]),
        (["--train-data", "TABLE", "--model", "missing.json"], ["missing.json"]),
        (["--train-data", "TABLE", "--caption-column", "title"], ["'title'", "caption", "captions.csv"]),
        (["--train-data", "TABLE", "--image-column", "photo"], ["'photo'", "filepath"]),
        (["--train-data", "TABLE", "--model", "TINY", "--batch-size", "100"], ["100", "60", "--batch-size"]),
        (["--train-data", "TABLE", "--model", "TINY", "--output", "RUN"], ["--resume auto", "--overwrite"]),
        (["--train-data", "TABLE", "--image-model", "resnet18"], ["--text-model"]),
        (["--train-data", "TABLE", "--image-model", "resnet81", "--text-model", "x"], ["resnet81"]),
        (["--config", "run.yaml"], ["run.yaml"]),
    ],
    ids=lambda value: value[-2] + value[-1] if len(value) > 1 and value[0].startswith("--") else None,
)
def test_mistakes_in_training(
    mistake: Any, table: Path, tmp_path: Path, run: Path, monkeypatch: Any, arguments: list[str], named: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"TABLE": table, "TINY": make_config(tmp_path / "tiny.json"), "RUN": run}
    said = mistake("train", *[places.get(a, a) for a in arguments])
    assert all(name in said for name in named), said


def test_a_batch_that_is_too_large_leaves_no_run_behind(mistake: Any, cli: Cli, table: Path, tmp_path: Path) -> None:
    """The fixed command must not be answered with "the run exists"."""
    tiny = make_config(tmp_path / "tiny.json")
    command = ["train", "--train-data", table, "--model", tiny, "--output", tmp_path / "out", "--workers", "0"]
    mistake(*command, "--batch-size", "100")
    status, _, err = cli(*command, "--batch-size", "20", "--max-steps", "1")
    assert status == 0, err


@pytest.mark.parametrize("kind", ["every caption empty", "no row", "no picture there"])
def test_a_table_without_a_usable_row(mistake: Any, table: Path, tmp_path: Path, kind: str) -> None:
    name = table.parent / "000.png" if kind != "no picture there" else "gone.png"
    rows = {"every caption empty": f"{name},\n{name},  \n", "no row": "", "no picture there": f"{name},a bird\n"}
    path = tmp_path / "bad.csv"
    path.write_text("filepath,caption\n" + rows[kind])
    assert "bad.csv" in mistake("train", "--recipe", "clip", "--train-data", path, "--output", tmp_path / "out")


MODEL_VERBS: list[list[str]] = [
    ["search", "a bird"], ["classify", "PICTURE", "--labels", "a", "b"], ["match", "PICTURE", "CAPTIONS"],
    ["embed", "PICTURE"], ["index", "FOLDER"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", MODEL_VERBS, ids=lambda a: a[0])
def test_models_that_are_not_there(
    mistake: Any, table: Path, tmp_path: Path, monkeypatch: Any, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.txt").write_text("a bird\n")
    places = {"PICTURE": table.parent / "000.png", "CAPTIONS": tmp_path / "captions.txt", "FOLDER": table.parent}
    call = [places.get(a, a) for a in arguments]
    assert "clipkit train" in mistake(*call), "no run there yet: how to make one"
    assert "ViT-B-32" in mistake(*call, "--model", "ViT-B-23")
    assert "runs/none" in mistake(*call, "--model", "runs/none")
    (tmp_path / "empty").mkdir()
    assert "empty" in mistake(*call, "--model", "empty")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("classify gone.png --labels a b", "gone.png"),
        ("classify bad.png --labels a b", "bad.png"),
        ("classify PICTURE", "--labels"),
        ("classify folder --labels a b", "folder"),
        ("classify PICTURE --labels a a", "'a'"),
        ("classify PICTURE --labels a b -k 0", "k is 0"),
        ("classify PICTURE --labels a b --templates none-such", "{}"),
        ("match PICTURE empty.txt", "empty.txt"),
        ("match PICTURE binary.txt", "binary.txt"),
        ("match PICTURE gone.txt", "gone.txt"),
        ("match bad.png labels.txt", "bad.png"),
        ("match folder labels.txt", "folder"),
        ("search gone.png", "gone.png"),
        ("search bad.png", "bad.png"),
        ("search bird --images gone", "gone"),
        ("search bird --index gone", "gone"),
        ("search bird -n 0", "k is 0"),
        ("search bird --device warp", "warp"),
        ("search bird --precision fp4", "fp4"),
        ("index gone", "gone"),
        ("index folder", "folder"),
        ("embed bad.png", "bad.png"),
        ("embed empty.txt", "empty.txt"),
        ("embed gone.png", "gone.png"),
        ("embed PICTURE --output gone/result", "gone"),
        ("match PICTURE labels.txt --output gone/result.csv", "gone"),
        ("match PICTURE labels.txt --html gone/result.html", "gone"),
        ("match PICTURE labels.txt --output result.html", "--html result.html"),
    ],
)  # fmt: skip
def test_mistakes_with_a_model(
    mistake: Any, run: Path, table: Path, tmp_path: Path, monkeypatch: Any, arguments: str, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n  \n")
    Path("labels.txt").write_text("a bird\na dog\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    Path("bad.png").write_bytes(b"no picture")
    Path("folder").mkdir()
    words = [str(table.parent / "000.png") if word == "PICTURE" else word for word in arguments.split()]
    assert named in mistake(*words, "--model", run)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--data gone.csv", "gone.csv"),
        ("--data TABLE --caption-column title", "'title'"),
        ("--split test", "--data"),
        ("--languages fr", "languages"),
    ],
)
def test_mistakes_in_evaluation(
    cli: Cli, run: Path, table: Path, tmp_path: Path, monkeypatch: Any, arguments: str, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = cli("evaluate", run, *[str(table) if word == "TABLE" else word for word in arguments.split()])
    assert status == 2
    assert err.startswith("clipkit: ") and err.count("\n") == 1 and named in err


def test_an_empty_query(mistake: Any, run: Path) -> None:
    mistake("search", "  ", "--model", run)


def test_figures_that_cannot_be_written(cli: Cli, run: Path, tmp_path: Path) -> None:
    status, _, err = cli("evaluate", run, "--output", tmp_path / "gone" / "figures.json")
    assert status == 2 and err.startswith("clipkit: ") and err.count("\n") == 1 and "gone" in err


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    """As people see it: libraries warn on import, and must not."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "clipkit", "search", "a bird", "--model", "runs/none"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("clipkit: runs/none") and done.stderr.count("\n") == 1


# What the verbs do


def test_match(cli: Cli, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for colour in ("red", "blue", "green"):
        draw(colour, "plain").save(folder / f"{colour}.png")
    (tmp_path / "captions.txt").write_text("a green plain\na red plain\na blue plain\na pink top\n")
    status, out, err = cli("match", folder, tmp_path / "captions.txt", "--model", run)
    rows = list(csv.DictReader(out.splitlines()))
    assert status == 0 and err == "" and len(rows) == 3
    assert {Path(r["picture"]).stem for r in rows} == {"red", "blue", "green"}
    assigned = [r["assigned_caption"] for r in rows]
    assert len(set(assigned)) == 3 and all(-1 <= float(r["score"]) <= 1 for r in rows)
    assert sum(Path(r["picture"]).stem in r["assigned_caption"] for r in rows) >= 2
    status, out, _ = cli("match", folder, tmp_path / "captions.txt", "--model", run, "--output", tmp_path / "m.csv")
    assert status == 0 and list(csv.DictReader((tmp_path / "m.csv").read_text().splitlines())) == rows
    page = tmp_path / "m.html"
    status, out, err = cli("match", folder, tmp_path / "captions.txt", "--model", run, "--html", page)
    assert status == 0 and err == "" and out == f"3 pictures and 4 captions matched: {page}\n"
    html = page.read_text(encoding="utf-8")
    assert html.count('<img src="data:image/webp;base64,') == 3 and ">red.png<" in html and str(folder) not in html
    for row in rows:
        assert f"{row['best_caption']} ({float(row['score']):.3f})" in html
    (folder / "broken.png").write_bytes(b"no picture")
    status, out, err = cli("match", folder, tmp_path / "captions.txt", "--model", run)
    assert status == 0 and list(csv.DictReader(out.splitlines())) == rows, "the others are matched all the same"
    assert err.startswith("clipkit: skipped") and "broken.png" in err and err.count("\n") == 1


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
    assert "bad.png" in out or "12 to test" in out


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
        ("--label-efficiency PHOTOS --lr 0", "learning rate"),
        ("--probe PHOTOS --split test", "no split called test"),
    ],
)
def test_mistakes_in_what_was_learned(
    mistake_after: Any, run: Path, table: Path, tmp_path: Path, monkeypatch: Any, arguments: str, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"TABLE": table, "PHOTOS": coloured(tmp_path / "photos", 5)}
    assert named in mistake_after("evaluate", run, *[places.get(word, word) for word in arguments.split()])


def test_prepare(cli: Cli, mistake: Any, table: Path, tmp_path: Path) -> None:
    status, out, _ = cli("prepare", table, tmp_path / "shards")
    assert status == 0 and list((tmp_path / "shards" / "train").glob("*.tar")) and "60" in out
    status, out, _ = cli("prepare", table, tmp_path / "shards")
    assert status == 0 and "there already" in out
    assert "--overwrite" in mistake("prepare", table, tmp_path / "shards", "--samples-per-shard", 7)
    assert "nowhere.csv" in mistake("prepare", tmp_path / "nowhere.csv", tmp_path / "other")
