"""The pages of the recipes are true: their tables and settings are those of the code, and their commands parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipkit.cli import main
from clipkit.explain.markdown import END, START, generated
from clipkit.options import parse_training
from clipkit.recipes import RECIPES

DOCS = Path(__file__).parent.parent / "docs" / "recipes"
PAGES = [name for name in RECIPES if name != "starter"]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_the_table_and_the_settings_are_those_of_the_code(name: str) -> None:
    """If not: ``clipkit explain --markdown docs/recipes``."""
    written = page(name).partition(START)[2].partition(END)[0]
    assert written.strip() == generated(name).strip()


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_parse(name: str) -> None:
    from clipkit.commands import _VERBS

    blocks = re.findall(r"```bash\n(.*?)```", page(name), flags=re.S)
    commands = [shlex.split(line) for block in blocks for line in block.strip().splitlines()]
    train, *others = commands
    assert train[:3] == ["accelerate", "launch", "clipkit/train.py"]
    recipe, config = parse_training(train[3:])
    assert recipe.name == name and config.data.train_data is not None
    for command in others:
        import tyro

        parsed = tyro.cli(_VERBS[command[1]], args=command[2:])
        assert command[:2] == ["clipkit", "evaluate"] and parsed.model_name == f"runs/{name}"
    assert others or "```python" in page(name), "how to measure it"
    for code in re.findall(r"```python\n(.*?)```\n", page(name), flags=re.S):
        compile(code, f"{name}.md", "exec")
    assert page(name).count("```") == 2 * len(re.findall(r"^```$", page(name), flags=re.M)), "blocks are closed"
    for flags in re.findall(r"`(--[a-z][^`]*)`", page(name).partition(START)[0]):
        if not flags.startswith(("--output", "--data", "--recipe")):
            parse_training(["--recipe", name, *(shlex.split(flags) if " " in flags else []), "--train-data", "x"])
            assert f"{flags.split()[0]} " in _flags(), flags


def _flags() -> str:
    from clipkit.config import Config

    return " ".join(f"--{name.replace('_', '-')}" for name in Config().to_dict()) + " "


def test_the_index_names_every_page() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\)", page("README"), flags=re.M)
    assert listed == [(name, name) for name in PAGES]
    assert {p.stem for p in DOCS.glob("*.md")} == {*PAGES, "README"}


def test_rewriting_touches_the_generated_part_alone(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "clip.md"
    path.write_text(f"before\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    assert main(["explain", "--markdown", str(tmp_path)]) == 0
    assert path.read_text(encoding="utf-8") == f"before\n{START}\n\n{generated('clip')}\n\n{END}\nafter\n"
    path.write_text("no marks\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["explain", "clip", "--markdown", str(tmp_path)]) == 2
    assert "clip.md" in capsys.readouterr().err and path.read_text(encoding="utf-8") == "no marks\n"
