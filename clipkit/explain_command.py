"""``clipkit explain``: its flags."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from clipkit.errors import ClipkitError
from clipkit.inputs import check_output, parse_flags

if TYPE_CHECKING:  # a mistyped flag should not wait for torch
    from clipkit.config import Config
    from clipkit.explain.table import Explained

MOST = 32  # samples of a batch; more are no longer looked at cell by cell
_OWN = ("--data", "--samples", "--run", "--output", "--markdown")


@dataclass(frozen=True)
class Explain:
    """Draw a method's table of the comparison for a real batch: which cells are positive, negative or do not count, and
    which way the loss moves each. Several recipes are drawn side by side, with what differs between them. Flags of
    `clipkit train` change the recipes' settings, as in training."""

    recipes: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RECIPE [RECIPE ...]")] = ()
    """Recipes by name. Default: that of --run."""
    data: str | None = None
    """Anything that --train-data takes. Default: the run's data, or a few drawn shapes, sentences or choices."""
    samples: int = 8
    """Samples of the batch, 2 to 32."""
    run: str | None = None
    """Run directory: its settings and its weights. Default: the recipe's own, untrained."""
    output: str | None = None
    """HTML file: one page with pictures, numbers and legend that loads nothing."""
    markdown: str | None = None
    """Folder of recipe pages: rewrite the generated part of NAME.md for each recipe (default: all pages there)."""


def run(arguments: list[str]) -> int:
    """The command; returns 0."""
    own, training = _apart(arguments)
    flags = parse_flags(Explain, own, "clipkit explain")
    if not 2 <= flags.samples <= MOST:
        raise ClipkitError(f"--samples is {flags.samples}; it must be from 2 to {MOST}")
    check_output(flags.output)
    if flags.markdown is not None:
        from clipkit.explain.markdown import rewrite

        rewrite(Path(flags.markdown), flags.recipes)
        return 0
    explained = [_explained(name, flags, training) for name in _names(flags)]
    from clipkit.explain.text import report

    print(report(explained, max(60, shutil.get_terminal_size((100, 24)).columns)))
    if flags.output is not None:
        from clipkit.cache import atomic_write
        from clipkit.explain.page import document

        with atomic_write(Path(flags.output)) as file:
            file.write(document(explained).encode())
        print(f"\npage: {flags.output}")
    return 0


def _explained(name: str | None, flags: Explain, training: list[str]) -> Explained:
    """``explain_recipe``; of several, the message says for which one a flag that all of them get does not fit."""
    try:
        return explain_recipe(name, flags, training)
    except ClipkitError as error:
        raise (ClipkitError(f"{name}: {error}") if len(flags.recipes) > 1 else error) from None


def explain_recipe(name: str | None, flags: Explain, training: list[str]) -> Explained:
    """The recipe called ``name`` (None: that of ``flags.run``) on its batch, settings changed by ``training``.

    Raises:
        ClipkitError: an unknown recipe, another one than the run's, or data or settings that are wrong.
    """
    from clipkit.explain.table import explain
    from clipkit.options import parse_training
    from clipkit.settings import check_settings

    before = [] if name is None else ["--recipe", name]
    model = None
    if flags.run is not None:
        before += ["--config", str(_run_file(Path(flags.run), name))]
    if flags.data is not None:
        before += ["--train-data", flags.data]
    recipe, config = parse_training([*before, *training], "clipkit explain")
    check_settings(config)
    if flags.run is not None:
        from clipkit.training.checkpoint import load_model
        from clipkit.training.kept import find_checkpoint

        model = load_model(find_checkpoint(Path(flags.run)))
    with _data(config, flags.samples) as (read, source):
        found = explain(recipe, read, flags.samples, model, flags.run or "untrained")
    return found if source is None else found.called(source)


@contextmanager
def _data(config: Config, samples: int) -> Iterator[tuple[Config, str | None]]:
    """``config`` with data: its own, or drawn ones, which are gone afterwards and have no file to be called by."""
    if config.data.train_data is not None:
        yield config, None
        return
    from tempfile import TemporaryDirectory

    from clipkit.explain.samples import write_samples

    with TemporaryDirectory(prefix="clipkit-") as folder:
        drawn = write_samples(Path(folder), config.data.compare, samples)
        yield config.replace(train_data=str(drawn)), "built-in samples"


def _names(flags: Explain) -> list[str | None]:
    if flags.run is not None and len(flags.recipes) > 1:
        raise ClipkitError(f"--run {flags.run} has the weights of one recipe; name one, or leave --run out")
    if not flags.recipes and flags.run is None:
        from clipkit.recipes import RECIPES

        raise ClipkitError(f"no recipe is named; recipes are {', '.join(RECIPES)}")
    return list(flags.recipes) or [None]


def _run_file(run: Path, name: str | None) -> Path:
    """The run's settings, which have to be those of recipe ``name``."""
    from clipkit.run_file import read_settings

    file = run / "config.yaml"
    if not file.is_file():
        raise ClipkitError(f"--run {run}: no run directory (no config.yaml in it)")
    trained = read_settings(file).get("recipe")
    if name is not None and name != trained:
        raise ClipkitError(f"--run {run} was trained with recipe {trained}, not {name}; explain {trained} with it")
    return file


def _apart(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The verb's own arguments, the recipes among them, and those of training."""
    if any(a in ("-h", "--help") for a in arguments):
        return ["--help"], []
    first = next((i for i, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    own, training = arguments[:first], []
    rest = iter(arguments[first:])
    for argument in rest:
        if argument.split("=", 1)[0] not in _OWN:
            training.append(argument)
            continue
        own.append(argument)
        if "=" not in argument and (value := next(rest, None)) is not None:
            own.append(value)
    return own, training
