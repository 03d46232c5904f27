"""Settings: YAML in and out, and the order of command line, run file and recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.config import PARTS, Config
from clipkit.errors import ClipkitError
from clipkit.options import parse_training
from clipkit.run_file import load_config, read_settings, save_config


def run_file(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def message(function: object, *arguments: object, **named: object) -> str:
    with pytest.raises(ClipkitError) as caught:
        function(*arguments, **named)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_yaml_round_trip_of_defaults_and_of_every_kind_of_value(tmp_path: Path) -> None:
    changed = Config().replace(
        recipe="siglip", train_data="bilder/größe {000..003}.tar", crop_scale=(0.5, 1.0), lr=1e-7, max_steps=3,
        micro_batch_size=None, lock_text=True, captions="all", precision="bf16", output="no", resume="auto", epochs=2,
        objective="hard",
    )  # fmt: skip
    for n, config in enumerate((Config(), changed)):
        save_config(config, tmp_path / f"{n}.yaml")
        assert load_config(tmp_path / f"{n}.yaml") == config
    assert isinstance(load_config(tmp_path / "1.yaml").data.crop_scale, tuple)


def test_names_are_flat_and_unique() -> None:
    import dataclasses

    names = [f.name for part in PARTS.values() for f in dataclasses.fields(part)]
    assert len(names) == len(set(names))
    known = (
        "train_data val_data output batch_size micro_batch_size epochs lr wd warmup precision lock_image lock_text "
        "siglip seed resume workers max_steps save_every keep_best dry_run"
    )
    assert set(known.split()) <= set(names)
    assert set(Config().to_dict()) == {"recipe", *names}


def test_replace_names_the_unknown_setting() -> None:
    assert "batch_size" in message(Config().replace, batch_sise=3)
    config = Config().replace(lr=1.0, seed=4)
    assert (config.optim.lr, config.run.seed, Config().optim.lr) == (1.0, 4, 5e-4)


def test_yaml_reads_what_people_write(tmp_path: Path) -> None:
    text = "recipe: clip\nlr: 1e-3\nwd: 0\nbatch-size: 64\ncrop_scale: [0.5, 1]\nmax_steps: null\nkeep_best: false\n"
    settings = read_settings(run_file(tmp_path, text))
    assert settings == {
        "recipe": "clip", "lr": 1e-3, "wd": 0.0, "batch_size": 64, "crop_scale": (0.5, 1.0), "max_steps": None,
        "keep_best": False,
    }  # fmt: skip
    assert isinstance(settings["lr"], float) and isinstance(settings["wd"], float)
    assert read_settings(run_file(tmp_path, "")) == {}
    assert read_settings(run_file(tmp_path, "train_data: ~/a.csv"))["train_data"] == str(Path.home() / "a.csv")


def test_a_mixture_in_a_run_file(tmp_path: Path) -> None:
    settings = read_settings(run_file(tmp_path, "train_data:\n  a.csv: 3\n  shards/: 0.5\n"))
    assert settings == {"train_data": "a.csv::shards/", "train_weights": (3.0, 0.5)}
    config = Config().replace(**settings)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    arguments = ["--train-data", "a::b", "--train-weights", "2", "1"]
    assert parse_training(arguments)[1].data.train_weights == (2.0, 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train_data: {a: much}", ["train_data", "a", "much", "number"]),
        ("train_weights: [a]", ["train_weights", "numbers"]),
        ("train_weights: 3", ["train_weights"]),
        ("batch_size: many", ["batch_size", "many", "int"]),
        ("batch_size: 3.5", ["batch_size", "3.5"]),
        ("batch_size: true", ["batch_size", "True"]),
        ("batch_size: null", ["batch_size"]),
        ("lr: fast", ["lr", "fast", "float"]),
        ("lr: true", ["lr"]),
        ("keep_best: 1", ["keep_best", "bool"]),
        ("objective: sigmod", ["objective", "sigmod", "sigmoid", "infonce"]),
        ("precision: fp16", ["precision", "fp16", "bf16", "float32"]),
        ("captions: two", ["captions", "one", "all"]),
        ("crop_scale: 0.5", ["crop_scale"]),
        ("crop_scale: [0.5]", ["crop_scale"]),
        ("crop_scale: [a, b]", ["crop_scale"]),
        ("crop_scale: [true, false]", ["crop_scale"]),
        ("train_data: [a, b]", ["train_data", "str"]),
        ("workers: {a: 1}", ["workers"]),
        ("bacth_size: 3", ["bacth_size", "batch_size"]),
        ("qqqqqq: 3", ["qqqqqq", "--help"]),
        ("- a\n- b", ["list"]),
        ("just words", ["str"]),
        ("a: [1", ["YAML"]),
        ("a: b: c", ["YAML"]),
    ],
)  # fmt: skip
def test_mistakes_in_a_run_file_are_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    said = message(read_settings, run_file(tmp_path, text))
    assert "run.yaml" in said
    assert all(word in said for word in words), said


def test_a_missing_or_binary_run_file(tmp_path: Path) -> None:
    assert "nowhere.yaml" in message(read_settings, tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01\x80")
    assert "binary.yaml" in message(read_settings, tmp_path / "binary.yaml")


def test_command_line_over_yaml_over_recipe(tmp_path: Path) -> None:
    file = run_file(tmp_path, "recipe: lit\nlr: 0.25\nbatch_size: 32\nlock_image: false\nepochs: 3\n")
    recipe, config = parse_training(["--config", file, "--batch-size", "16", "--epochs", "7"])
    assert recipe.name == config.recipe == "lit"
    assert (config.optim.batch_size, config.optim.lr, config.optim.epochs) == (16, 0.25, 7.0)
    assert config.model.lock_image is False  # the file's, over the recipe's True
    assert config.data.augment == "none"  # the recipe's
    assert parse_training(["--recipe", "lit"])[1].model.lock_image is True


def test_the_recipe_of_the_command_line_wins(tmp_path: Path) -> None:
    file = run_file(tmp_path, "recipe: lit\nlr: 0.25\n")
    for arguments in (["--recipe", "siglip"], ["--recipe=siglip"]):
        recipe, config = parse_training([f"--config={file}", *arguments])
        assert recipe.name == config.recipe == "siglip"
        assert config.optim.siglip and not config.model.lock_image and config.optim.lr == 0.25


def test_a_saved_config_gives_the_same_run(tmp_path: Path) -> None:
    _, config = parse_training(["--recipe", "siglip", "--train-data", "a.csv", "--lr", "1e-4", "--no-keep-best"])
    save_config(config, tmp_path / "config.yaml")
    recipe, again = parse_training(["--config", str(tmp_path / "config.yaml")])
    assert again == config and recipe.name == "siglip"


def test_siglip_and_an_objective() -> None:
    def loss(*arguments: str) -> str:
        return parse_training(["--train-data", "a.csv", *arguments])[1].optim.loss

    assert loss() == "infonce" and loss("--siglip") == loss("--objective", "sigmoid") == "sigmoid"
    assert loss("--recipe", "siglip", "--no-siglip", "--objective", "hard") == "hard"
    assert loss("--recipe", "byol") == "cosine" and loss("--recipe", "byol", "--objective", "infonce") == "infonce"


def test_known_flags_have_no_prefix() -> None:
    arguments = (
        "--recipe clip --train-data a --val-data b --output c --batch-size 4 --micro-batch-size 2 --epochs 1 --lr 1 "
        "--wd 0 --warmup 5 --precision bf16 --lock-image --lock-text --siglip --seed 3 --resume auto --workers 0 "
        "--max-steps 9 --save-every 2 --keep-best --dry-run"
    )
    flat = parse_training(arguments.split())[1].to_dict()
    expected = {
        "train_data": "a", "val_data": "b", "output": "c", "batch_size": 4, "micro_batch_size": 2, "warmup": 5,
        "precision": "bf16", "lock_image": True, "lock_text": True, "siglip": True, "seed": 3, "resume": "auto",
        "workers": 0, "max_steps": 9, "save_every": 2, "dry_run": True,
    }  # fmt: skip
    assert {name: flat[name] for name in expected} == expected


def test_a_flag_given_twice_means_the_last_one() -> None:
    recipe, config = parse_training(["--recipe", "clip", "--lr", "1", "--recipe", "lit", "--lr", "2"])
    assert config.optim.lr == 2.0
    assert recipe.name == config.recipe == "lit" and config.model.lock_image


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    assert "siglip" in message(parse_training, ["--recipe", "siglp"])
    assert "--config" in message(parse_training, ["--config"])
    assert "gone.yaml" in message(parse_training, ["--config", str(tmp_path / "gone.yaml")])
    assert "clpi" in message(parse_training, ["--config", run_file(tmp_path, "recipe: clpi")])
    assert "--batch-size" in message(parse_training, ["--recipe", "clip", "--batch-sise", "3"])
    assert "'many'" in message(parse_training, ["--recipe", "clip", "--batch-size", "many"])
    assert "helptext" not in message(parse_training, ["--recipe", "clip", "--batch-size", "many"])
