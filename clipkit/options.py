"""The main job's command line: recipe, then run file, then flags, the later over the earlier."""

from __future__ import annotations

from dataclasses import dataclass

from clipkit.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from clipkit.errors import ClipkitError
from clipkit.inputs import parse_flags
from clipkit.recipes import RECIPES, Recipe, find_recipe
from clipkit.run_file import read_settings


@dataclass(frozen=True)
class _Flags:
    recipe: str
    """Method: its defaults are what the flags below change."""
    config: str | None
    """YAML run file (a run directory's config.yaml is one); flags go over it."""
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    run: RunConfig


def parse_training(arguments: list[str], prog: str = "clipkit train") -> tuple[Recipe, Config]:
    """The recipe and the resolved config of a command line.

    Raises:
        ClipkitError: an unknown recipe or a bad run file. Unknown flags and ``--help`` end in tyro's own message
            (SystemExit).
    """
    import tyro

    file = _value(arguments, "--config")
    settings = read_settings(file) if file else {}
    name = _value(arguments, "--recipe") or settings.pop("recipe", None)
    if name is None:
        given = settings.get("train_data") or _value(arguments, "--train-data")
        name = "clip" if given or "starter" not in RECIPES else "starter"
    recipe = find_recipe(str(name))
    settings.pop("recipe", None)
    defaults = recipe.defaults.replace(recipe=recipe.name, **settings)

    recipes = "\n".join(f"  {r.name}: {r.summary}" for r in RECIPES.values())
    parsed = parse_flags(
        _Flags,
        arguments,
        prog,
        description=f"Train a model of images and text, or another of the contrastive family. Recipes:\n\n{recipes}",
        default=_Flags(recipe.name, file, defaults.data, defaults.model, defaults.optim, defaults.run),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return recipe, Config(recipe.name, parsed.data, parsed.model, parsed.optim, parsed.run)


def _value(arguments: list[str], flag: str) -> str | None:
    """The value of ``flag`` in ``arguments``, before they are parsed; the last one, as for every other flag."""
    value = None
    for i, argument in enumerate(arguments):
        if argument == flag:
            if i + 1 == len(arguments):
                raise ClipkitError(f"{flag} needs a value")
            value = arguments[i + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.split("=", 1)[1]
    return value
