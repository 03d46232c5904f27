"""The ``clipkit`` command: every verb's help, what it prints, and one line for every mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "training"))

from training_helpers import ROOT, make_config

from clipkit.cli import VERBS

Cli = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_prepare(cli: Cli, mistake: Any, table: Path, tmp_path: Path) -> None:
    status, out, _ = cli("prepare", table, tmp_path / "shards")
    assert status == 0 and list((tmp_path / "shards" / "train").glob("*.tar")) and "60" in out
    status, out, _ = cli("prepare", table, tmp_path / "shards")
    assert status == 0 and "there already" in out
    assert "--overwrite" in mistake("prepare", table, tmp_path / "shards", "--samples-per-shard", 7)
    assert "nowhere.csv" in mistake("prepare", tmp_path / "nowhere.csv", tmp_path / "other")
