"""A run's settings as a YAML file: one flat mapping, written beside every checkpoint and read back by ``--config``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from clipkit.config import PARTS, Config, homes
from clipkit.errors import ClipkitError, did_you_mean


def save_config(config: Config, path: Path) -> None:
    """Write ``config`` as YAML: one flat mapping that ``--config`` reads back."""
    import yaml

    path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML run file, flat names to checked values.

    Raises:
        ClipkitError: the file is missing, is not a mapping, names an unknown setting or holds a value of another
            type than the setting's.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ClipkitError(f"{path}: no such run file; give --config the path of a YAML file")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first_line = str(error).replace("\n", " ")
        raise ClipkitError(f"{path}: not valid YAML ({first_line})") from None
    if not isinstance(loaded, dict):
        raise ClipkitError(f"{path}: expected `name: value` lines, found a {type(loaded).__name__}")
    home_of = homes()
    settings: dict[str, Any] = {}
    if isinstance(loaded.get("train_data"), dict):
        loaded = {**loaded, **_mixture(path, loaded["train_data"])}
    for name, value in loaded.items():
        key = str(name).replace("-", "_")
        if key != "recipe" and key not in home_of:
            hint = did_you_mean(key, list(home_of))
            raise ClipkitError(f"{path}: no setting is called {name!r}{hint or '; see clipkit train --help'}")
        settings[key] = value if key == "recipe" else _checked(path, key, value, PARTS[home_of[key]])
    return settings


def _mixture(path: Path, weights: dict[Any, Any]) -> dict[str, Any]:
    """``{source: weight}`` as the two settings that it stands for."""
    for source, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ClipkitError(f"{path}: train_data: {source} has weight {weight!r}; expected a number")
    return {"train_data": "::".join(map(str, weights)), "train_weights": list(weights.values())}


def load_config(path: str | Path) -> Config:
    """The ``Config`` saved by ``save_config``."""
    return Config().replace(**read_settings(path))


def _checked(path: Path, name: str, value: Any, cls: type) -> Any:
    """``value`` as the type of field ``name``: YAML has no tuples, and reads ``1e-3`` as a string."""
    wanted = get_type_hints(cls)[name]
    if get_origin(wanted) is tuple:
        numbers = value if isinstance(value, (list, tuple)) else (None,)
        count = None if Ellipsis in get_args(wanted) else len(get_args(wanted))
        if len(numbers) == (count or len(numbers)) and all(type(n) in (int, float) for n in numbers):
            return tuple(float(n) for n in numbers)
        raise ClipkitError(f"{path}: {name} is {value!r}; expected {count or 'a list of'} numbers, as [0.9, 1.0]")
    for option in get_args(wanted) or (wanted,):
        if option in (None, type(None)) and value is None:
            return None
        if option is bool and isinstance(value, bool):
            return value
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is float and not isinstance(value, bool):
            try:
                if isinstance(value, (int, float, str)):
                    return float(value)
            except ValueError:
                pass
        if option is str and isinstance(value, str):
            return str(Path.home() / value[2:]) if value.startswith("~/") else value
        if isinstance(option, str) and value == option:  # a Literal's choice
            return value
    choices = [o for o in get_args(wanted) if isinstance(o, str)]
    expected = f"one of {', '.join(choices)}" if choices else str(getattr(wanted, "__name__", wanted))
    raise ClipkitError(f"{path}: {name} is {value!r}; expected {expected}")
