"""What the tests of runs share: generated pictures with captions, a tiny model, and ways to start a run."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from forked import Forked
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "clipkit" / "train.py"
COLOURS = {
    "red": (220, 30, 30), "green": (30, 190, 40), "blue": (30, 40, 220), "yellow": (235, 225, 30),
    "white": (245, 245, 245), "black": (12, 12, 12), "pink": (250, 150, 190), "purple": (120, 20, 140),
    "orange": (245, 140, 20), "cyan": (30, 220, 230),
}  # fmt: skip
SHAPES = ["left", "right", "top", "bottom", "square", "plain"]


def draw(colour: str, shape: str, noise: int = 0) -> Image.Image:
    """A picture of 40x36 pixels: a shape of ``colour`` on grey noise."""
    pixels = np.random.default_rng(noise).integers(100, 156, (36, 40, 3)).astype(np.uint8)
    where = {
        "left": np.s_[:, :20], "right": np.s_[:, 20:], "top": np.s_[:18], "bottom": np.s_[18:],
        "square": np.s_[9:27, 10:30], "plain": np.s_[:],
    }[shape]  # fmt: skip
    pixels[where] = COLOURS[colour]
    return Image.fromarray(pixels)


def make_table(folder: Path, n: int = 60, noise: int = 0, bad: Iterable[int] = ()) -> Path:
    """``folder/captions.csv`` with n pictures beside it, every caption a different one; ``bad`` are no pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    kinds = [(colour, shape) for shape in SHAPES for colour in COLOURS]
    for i in range(n):
        colour, shape = kinds[i % len(kinds)]
        name = f"{i:03d}.png"
        if i in set(bad):
            (folder / name).write_bytes(b"no picture")
        else:
            draw(colour, shape, 1000 * noise + i).save(folder / name)
        rows.append((name, f"a {colour} {shape}" + (f" {i}" if i >= len(kinds) else "")))
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filepath", "caption"), *rows])
    return folder / "captions.csv"


def make_config(path: Path, embed_dim: int = 24, width: int = 32) -> Path:
    """A model of 32 pixels and 2 layers, in open_clip's JSON format."""
    vision = {"image_size": 32, "layers": 2, "width": width, "head_width": 16, "patch_size": 16}
    text = {"context_length": 24, "vocab_size": 49408, "width": width // 2, "heads": 2, "layers": 2}
    path.write_text(json.dumps({"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}))
    return path


def flags(settings: dict[str, Any]) -> list[str]:
    """``{"batch_size": 20, "overwrite": True}`` as a command line."""
    out: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if value is True or value is False:
            out.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            out += [f"--{flag}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return out


def make_classes(folder: Path) -> Path:
    """Class folders: eight pictures of each of five colours."""
    for colour in list(COLOURS)[:5]:
        (folder / colour).mkdir()
        for i in range(8):
            draw(colour, "plain", i).save(folder / colour / f"{i}.png")
    return folder


def make_interactions(folder: Path) -> Path:
    """A table of users of four tastes and forty items, ten of each taste."""
    path, draws = folder / "log.csv", random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("user_id", "item_id", "timestamp"))
        for user in range(80):
            for item in draws.sample([i for i in range(40) if i % 4 == user % 4], 7):
                writer.writerow((f"u{user}", f"i{item}", draws.random()))
    return path


def records(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Every line of ``metrics.jsonl``, which all must be whole."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in found if kind is None or r["kind"] == kind]


def losses(run: Path) -> dict[int, float]:
    """The loss of each step that has a record."""
    train = records(run, "train")
    assert len({r["step"] for r in train}) == len(train), "a step twice"
    return {r["step"]: r["loss"] for r in train}


def steps(run: Path) -> list[int]:
    """Steps of the checkpoints, ascending."""
    return sorted(int(p.name.split("-")[1]) for p in (run / "checkpoints").glob("step-*"))


def weights(checkpoint: Path) -> dict[str, Any]:
    """All of a checkpoint's tensors, weights and optimizer's."""
    from safetensors.torch import load_file

    found = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        found |= {f"{file.stem}/{name}": tensor for name, tensor in load_file(file).items()}
    return found


def assert_same_weights(one: Path, other: Path, atol: float | None = None) -> None:
    """Two checkpoints hold the same tensors: bit for bit, or to ``atol``."""
    import torch

    a, b = weights(one), weights(other)
    assert a.keys() == b.keys() and len(a) > 20
    for name in a:
        if atol is None:
            assert torch.equal(a[name], b[name]), name
        elif name.startswith("model/"):
            assert torch.allclose(a[name], b[name], atol=atol, rtol=0), f"{name}: {(a[name] - b[name]).abs().max()}"


def at_step(monkeypatch: Any, step: int, action: Any) -> None:
    """``action()`` in the middle of the step-th step that this process makes."""
    from clipkit.training import loop

    made = [0]
    real = loop.train_step

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        made[0] += 1
        if made[0] == step:
            action()
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", wrapped)


def assert_same_run(run: Path, whole: Path) -> None:
    """Two runs of 12 steps have the same losses, in order, and end with the same weights, bit for bit."""
    mine, theirs = losses(run), losses(whole)
    assert mine == theirs
    every = [r["step"] for r in records(run)]
    assert every == sorted(every)
    assert_same_weights(run / "checkpoints" / "step-12", whole / "checkpoints" / "step-12")


def environment() -> dict[str, str]:
    """The environment of a subprocess: one thread, no network, and no clipkit on the path."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


LAUNCHERS: dict[str, tuple[list[str], dict[str, str]]] = {
    "python": ([sys.executable], {}),
    "accelerate": ([sys.executable, "-m", "accelerate.commands.launch"], {}),
    "torchrun 2": ([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"], {}),
    "accelerate 2": (
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
        {"ACCELERATE_USE_CPU": "true"},
    ),
}


FORKED = {"forked": 1, "forked 2": 2}  # processes; see forked.py
Started = subprocess.Popen[str] | Forked


def start(settings: dict[str, Any], launcher: str = "python") -> Started:
    """A run as a process group of its own."""
    if launcher in FORKED:
        return Forked(flags(settings), environment(), FORKED[launcher], free_port())
    command, extra = LAUNCHERS[launcher]
    if "2" in launcher:
        command = [*command, "--master_port" if "torchrun" in launcher else "--main_process_port", str(free_port())]
    return subprocess.Popen(
        [*command, str(SCRIPT), *flags(settings)], env={**environment(), **extra}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: Started, timeout: float = 180) -> tuple[int, str, str]:
    """Exit status, standard output and standard error; ends what does not end by itself."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_group(process, signal.SIGKILL)
        raise
    return process.returncode, out, err


def kill_group(process: Started, number: int) -> None:
    """Send a signal to all processes that ``start`` made, as a terminal does on Ctrl-C."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def group_is_gone(process: Started, timeout: float = 90) -> bool:
    """Whether all processes that ``start`` made end by themselves; those that do not are ended."""
    process.wait(timeout)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            process.communicate()
            return True
        time.sleep(0.05)
    kill_group(process, signal.SIGKILL)
    return False


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for_step(run: Path, step: int, process: Started, timeout: float = 90) -> None:
    """Until the run has a record of ``step``."""
    wait_until(lambda: _last_step(run) >= step, process, timeout)


def wait_until(done: Callable[[], bool], process: Started, timeout: float = 90) -> None:
    """Until ``done``; fails when the process ends before."""
    end = time.monotonic() + timeout
    while not done():
        if process.poll() is not None:
            raise AssertionError(f"ended early ({process.returncode}): {process.communicate()}")
        if time.monotonic() > end:
            kill_group(process, signal.SIGKILL)
            raise AssertionError(f"nothing within {timeout} s: {process.communicate()}")
        time.sleep(0.01)


def _last_step(run: Path) -> int:
    path = run / "metrics.jsonl"
    if not path.is_file():
        return -1
    last = -1
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["kind"] == "train":
            last = record["step"]
    return last


def one_line(text: str) -> str:
    """The only line of standard error: clipkit's message, nothing before it and no traceback after it."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, f"{len(lines)} lines:\n{text}"
    assert lines[0].startswith("clipkit: "), text
    return lines[0]
