"""The main job from the command line and from Python: what it takes, and in which order settings win."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.config import Config
from clipkit.errors import ClipkitError
from clipkit.options import parse_training
from clipkit.recipes import Recipe, find_recipe

ROOT = Path(__file__).resolve().parents[1]


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
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Data of 24 pictures and a tiny model, as ``clipkit.train`` takes them."""
    folder = tmp_path_factory.mktemp("data")
    rows = [("filepath", "caption")]
    for i in range(24):
        pixels = np.full((32, 32, 3), (10 * i, 250 - 10 * i, 90), dtype=np.uint8)
        pixels[: i + 4] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append((f"{i}.png", f"picture number {i}"))
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    (folder / "tiny.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    return {
        "train_data": str(folder / "captions.csv"), "model": str(folder / "tiny.json"), "batch_size": 8, "epochs": 1,
        "workers": 0, "log_every": 1,
    }  # fmt: skip


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_from_python(settings: dict[str, Any], tmp_path: Path) -> None:
    run = clipkit.train("clip", **settings, output=str(tmp_path / "run"))
    assert run == tmp_path / "run" and len(losses(run)) == 3
    assert clipkit.load(run, device="cpu").encode_text("a picture").shape == (16,)


def test_a_config_and_changes_to_it(settings: dict[str, Any], tmp_path: Path) -> None:
    config = Config(recipe="clip").replace(**settings, max_steps=2)
    run = clipkit.train("clip", config=config, max_steps=1, output=str(tmp_path / "run"))
    assert len(losses(run)) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"batchsize": 3}, "batch_size"), ({"config": {"lr": 1}}, "clipkit.Config"), ({"lr": -1}, "--lr")],
)
def test_mistakes_in_python_are_clipkit_errors(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ClipkitError) as caught:
        clipkit.train("clip", **{**settings, "output": str(tmp_path / "run"), **changes})
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_recipe_has_a_hint() -> None:
    with pytest.raises(ClipkitError, match="siglip"):
        clipkit.train("siglib")


def test_a_recipe_of_ones_own(settings: dict[str, Any], tmp_path: Path) -> None:
    clip = find_recipe("clip")
    calls: list[str] = []

    def objective(config: Config) -> Any:
        inner = clip.objective(config)

        def loss(comparison: Any) -> torch.Tensor:
            calls.append("mine")
            return 2 * inner(comparison)

        return loss

    mine = Recipe("mine", "twice the loss", clip.defaults, clip.pairs, clip.encoders, objective)
    one = clipkit.train(clip, **settings, max_steps=1, output=str(tmp_path / "one"))
    two = clipkit.train(mine, **settings, max_steps=1, output=str(tmp_path / "two"))
    assert calls and losses(two)[0] == pytest.approx(2 * losses(one)[0], rel=1e-6)


@pytest.mark.parametrize("name", ["mine", "clip"])
def test_a_recipe_of_ones_own_remembers_its_own_samples(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Under any name, with whatever data it opens: here twice those of --train-data."""
    from safetensors.torch import load_file

    clip = find_recipe("clip")

    def pairs(config: Config) -> Any:
        data = config.data.train_data
        return clip.pairs(config.replace(train_data=f"{data}::{data}"))

    mine = Recipe(name, "on more data", clip.defaults.replace(recipe=name, objective="global"), pairs)
    run = clipkit.train(mine, **{**settings, "batch_size": 24}, max_steps=2, output=str(tmp_path / "run"))
    memory = load_file(run / "checkpoints" / "step-2" / "memory.safetensors")
    assert {key: len(rows) for key, rows in memory.items()} == {
        "objective.log_u_rows": 48, "objective.log_u_columns": 48
    }  # fmt: skip
    assert sum(int(torch.isfinite(rows).sum()) for rows in memory.values()) > 24


def test_a_temperature_above_its_limit_is_told(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Public SigLIP weights start at 117; open_clip's training cuts that to 100 as well."""
    clip = find_recipe("clip")

    def encoders(config: Config) -> Any:
        model = clip.encoders(config)
        torch.nn.init.constant_(model.log_scale, math.log(117.33))
        return model

    mine = Recipe("mine", "weights of a high scale", clip.defaults, clip.pairs, encoders)
    run = clipkit.train(mine, **settings, max_steps=1, output=str(tmp_path / "cut"))
    assert "starts at 117.3 and is cut to --scale-max 100 in the first step" in capsys.readouterr().out
    assert clipkit.load(run, device="cpu").model.log_scale.exp().item() == pytest.approx(100, rel=1e-5)
    run = clipkit.train(mine, **settings, max_steps=1, scale_max=118, output=str(tmp_path / "kept"))
    assert "is cut to" not in capsys.readouterr().out
    assert clipkit.load(run, device="cpu").model.log_scale.exp().item() > 116


def test_outside_the_main_thread(settings: dict[str, Any], tmp_path: Path) -> None:
    """A notebook's or a server's worker thread cannot set signal handlers, and need not."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(clipkit.train("clip", **settings, output=str(tmp_path / "run")))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    assert found == [tmp_path / "run"], found
    assert len(losses(tmp_path / "run")) == 3


def test_the_function_stays_a_function() -> None:
    """``clipkit.train`` is a module as well; whatever was imported first, calling it must work."""
    for code in (
        "import clipkit; print(callable(clipkit.train))",
        "import clipkit.train, clipkit; print(callable(clipkit.train))",
        "from clipkit.train import main; import clipkit; print(callable(clipkit.train))",
        "import clipkit; from clipkit.cli import main; main(['train', '--recipe', 'x']); "
        "print(callable(clipkit.train))",
        "import clipkit; clipkit.train; from clipkit.train import main; print(callable(clipkit.train))",
    ):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "True", code


def test_flags_over_file_over_recipe(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("recipe: siglip\nlr: 1e-4\nbatch-size: 7\ncrop_scale: [0.5, 1.0]\n")
    recipe, config = parse_training(["--config", str(file), "--batch-size", "9", "--no-keep-best"])
    assert recipe.name == config.recipe == "siglip" and config.optim.siglip
    assert config.optim.lr == 1e-4 and config.optim.batch_size == 9 and config.data.crop_scale == (0.5, 1.0)
    assert config.run.keep_best is False
    recipe, config = parse_training([f"--config={file}", "--recipe=lit"])
    assert recipe.name == "lit" and config.model.lock_image and config.optim.batch_size == 7


def test_the_recipe_without_one() -> None:
    assert parse_training([])[0].name == "starter"
    assert parse_training(["--train-data", "x.csv"])[0].name == "clip"


KNOWN = """
--train-data --val-data --output --batch-size --micro-batch-size --epochs --lr --wd --warmup --precision
--lock-image --lock-text --siglip --seed --resume --workers --max-steps --save-every --keep-best --dry-run
--overwrite --recipe --config
"""


def test_the_known_flags_are_known(capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_training(["--help"])
    assert caught.value.code in (0, None)
    said = capsys.readouterr().out
    for flag in KNOWN.split():
        assert flag in said, flag


def test_a_run_file_with_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for text, named in (
        ("batchsize: 3", "batch_size"),
        ("lr: fast", "lr"),
        ("precision: fp4", "float32"),
        ("- 1\n- 2", "run.yaml"),
        ("a: [", "run.yaml"),
        ("recipe: none_such", "none_such"),
        ("batch_size: 2.5", "batch_size"),
    ):
        file.write_text(text)
        with pytest.raises(ClipkitError) as caught:
            parse_training(["--config", str(file)])
        assert named in str(caught.value) and "\n" not in str(caught.value), text
    with pytest.raises(ClipkitError, match=r"nowhere\.yaml"):
        parse_training(["--config", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(ClipkitError, match="--config"):
        parse_training(["--config"])


def test_the_script_takes_its_own_folder_off_the_path() -> None:
    """A launcher puts it there, and a module of clipkit would then stand in for a library of its name."""
    code = (
        "import runpy, sys\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, 'clipkit')\n"
        "sys.argv = ['clipkit/train.py', '--recipe', 'none-such']\n"
        "try:\n    runpy.run_path('clipkit/train.py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 2\n"
        "assert Path('clipkit').resolve() not in {Path(p or '.').resolve() for p in sys.path}, sys.path\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_script_from_anywhere(settings: dict[str, Any], tmp_path: Path) -> None:
    """Its own folder, with modules like ``cache`` and ``config``, must not be on the path of the libraries."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    flags = [x for name, value in settings.items() for x in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run(
        [sys.executable, str(ROOT / "clipkit" / "train.py"), *flags, "--max-steps", "1"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == "", "nothing to warn of"
    run = tmp_path / "runs" / "clip"
    assert len(losses(run)) == 1 and (run / "report.html").is_file()
