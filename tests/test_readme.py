"""The README is true: its commands parse, its Python compiles, and (slow) what it says is what happens."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
COMMANDS = [line for kind, body in BLOCKS if kind == "bash" for line in body.strip().splitlines()]


def test_the_first_screen_holds_a_picture_two_commands_and_what_they_print() -> None:
    screen = README[: README.index("## ")]
    picture = re.search(r"!\[.+?\]\((.+?)\)", screen)
    assert picture and (ROOT / picture[1]).is_file()
    commands = [line for kind, body in re.findall(r"```(\w+)\n(.*?)```", screen, flags=re.S) if kind == "bash"
                for line in body.strip().splitlines()]  # fmt: skip
    assert commands == [
        'pip install ".[starter]" && accelerate launch clipkit/train.py',
        'pip install ".[test]" && python -m pytest',
    ]
    assert "Held-out test split" in screen


def test_every_file_that_it_links_to_is_there_and_no_picture_is_heavy() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert {"docs/map.png", "docs/search.png", "CONTRIBUTING.md"} <= set(links)
    for link in links:
        assert (ROOT / link).exists(), link
        assert (ROOT / link).suffix != ".png" or (ROOT / link).stat().st_size <= 250_000, link


def test_ci_calls_the_test_command() -> None:
    assert "grep -m1 -F '\".[test]\"' README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("kind, body", [(k, b) for k, b in BLOCKS if k == "python"])
def test_python_compiles_and_names_what_exists(kind: str, body: str) -> None:
    import clipkit
    from clipkit.inference import Aligner, Classifier

    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = {"clipkit": clipkit, "model": Aligner, "classifier": Classifier}.get(node.value.id)
            assert owner is None or hasattr(owner, node.attr), f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if "train.py" in c or c.startswith("clipkit ")])
def test_every_flag_in_the_readme_exists(command: str) -> None:
    from clipkit import commands
    from clipkit.cli import VERBS

    words = shlex.split(command)
    words = words[words.index("clipkit/train.py") + 1 :] if "clipkit/train.py" in words else words[1:]
    if "train.py" in command:
        _parses(words)
    elif words[0] in commands._VERBS:
        import tyro

        tyro.cli(commands._VERBS[words[0]], args=words[1:])
    else:
        assert words[0] in VERBS


@pytest.mark.parametrize("flags", re.findall(r"\| `(--[^`]+)` ", README))
def test_every_row_of_the_table_parses(flags: str) -> None:
    _parses(shlex.split(flags))


def _parses(words: list[str]) -> None:
    from clipkit.options import parse_training

    parse_training(words)


@pytest.mark.slow
def test_the_first_command_does_what_the_readme_says(tmp_path: Path) -> None:
    environment = {**os.environ, "CLIPKIT_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    bin_folder = Path(sys.executable).parent

    def run(*command: str) -> str:
        program = [str(bin_folder / command[0]), *command[1:]]
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    said = run("accelerate", "launch", str(ROOT / "clipkit" / "train.py"))
    figures = {m[1].strip(): (float(m[2]), float(m[3])) for m in re.finditer(
        r"^(.{34})\s*([\d.]+)% \[.*?\]\s+[\d.]+%\s+([\d.]+)%$", said, flags=re.M)}  # fmt: skip
    for direction in ("image to text", "text to image"):
        for k in (1, 5, 10):
            assert f"{direction}, recall@{k}" in figures
        trained, chance = figures[f"{direction}, recall@1"]
        assert trained >= 20 * chance
    trained, chance = figures["zero-shot, 9 categories, mean"]
    assert trained >= 3 * chance
    assert "majority class" in said and said.count("]  ->  ") == 3
    assert 'clipkit search "a red bird" --model runs/starter' in said and "clipkit demo runs/starter" in said
    run_directory = tmp_path / "runs" / "starter"
    for name in ("config.yaml", "metrics.jsonl", "report.html", "evaluation.json", "index/index.json"):
        assert (run_directory / name).is_file(), name
    found = run("clipkit", "search", "a red bird", "--model", "runs/starter", "-n", "5").strip().splitlines()
    assert len(found) == 5
    assert "zero-shot" in run("clipkit", "evaluate", "runs/starter")
