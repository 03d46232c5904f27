"""The stream against open_clip's own loader, and what an index, a resume and reads over HTTP cost.

    python benchmarks/stream.py FOLDER [--python OTHER]

FOLDER holds JPEGs at their full size; shards are made of them in a temporary folder. OTHER is the Python of an
environment with open_clip_torch 3.3.0 and webdataset 0.2.86; without it one is made, which fetches torch once more.
Speed is samples per CPU second (all processes together), which says the same on a busy machine and on a quiet one.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import write
from stream_rival import cpu_seconds

from clipkit.inputs import picture_paths
from clipkit.pairs import (
    Augment,
    Order,
    PairReader,
    PictureSpec,
    decode_image,
    fit,
    normalize,
    open_shards,
    random_crop,
)
from clipkit.pairs.index import build_index
from clipkit.pairs.stream import stream
from clipkit.training.data import read_augmented, read_tokens, read_view

HERE = Path(__file__).resolve().parent
RIVAL = ("open_clip_torch==3.3.0", "webdataset==0.2.86")
SAMPLES, PER_SHARD, BATCH, ROUNDS = 4800, 100, 128, 3


def main(folder: str, python: str | None) -> None:
    """Measure, print, and write the figures."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        os.environ["CLIPKIT_CACHE"] = str(root / "cache")
        pictures = [p.read_bytes() for p in picture_paths([folder]) if p.suffix.lower() in (".jpg", ".jpeg")]
        make_shards(root / "photos", [(p, "a photo of something, taken in the afternoon") for p in pictures])
        figures: dict[str, Any] = {
            "pictures": len(pictures),
            "mean_bytes": sum(map(len, pictures)) // len(pictures),
            "alone_ms": alone(pictures),
            "loaders": loaders(root / "photos", python or rival_python(root)),
            "index_samples_per_cpu_second": index_rate(root),
            "resume_seconds": {str(step): resume_seconds(root / "photos", step) for step in (0, 1000, 10**6, 10**9)},
            "http": over_http(root / "photos", root),
        }
    for name in ("alone_ms", "index_samples_per_cpu_second", "resume_seconds", "http"):
        print(f"{name}: {figures[name]}")
    write("stream", figures)


def make_shards(folder: Path, samples: list[tuple[bytes, str]]) -> None:
    """``SAMPLES`` samples of ``samples``, again and again, in tars as webdataset writes them."""
    folder.mkdir()
    for first in range(0, SAMPLES, PER_SHARD):
        with tarfile.open(folder / f"{first // PER_SHARD:06d}.tar", "w") as tar:
            for n in range(first, first + PER_SHARD):
                picture, text = samples[n % len(samples)]
                for name, data in ((f"{n:06d}.jpg", picture), (f"{n:06d}.txt", text.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def loaders(folder: Path, python: str) -> list[dict[str, Any]]:
    """Both loaders in turn, each in a process of its own, the best of a few rounds."""
    pattern = f"{folder}/{{000000..{SAMPLES // PER_SHARD - 1:06d}}}.tar"
    rows = []
    print(f"{'samples per CPU second':28}{'clipkit':>12}{'normalized':>12}{'open_clip':>12}{'ratio':>8}")
    for views in ("train", "evaluation"):
        for workers in (1, 2):
            ours = [sys.executable, __file__, "--ours", str(folder), views, str(workers)]
            theirs = [python, str(HERE / "stream_rival.py"), pattern, str(SAMPLES), views, str(workers), str(BATCH)]
            found: dict[str, dict[str, Any]] = {}
            for _ in range(ROUNDS):  # in turn, so that what else the machine does falls on both
                for name, command in (("ours", ours), ("normalized", [*ours, "normalize"]), ("theirs", theirs)):
                    result = run_json(command)
                    rate = result["samples"] / result["cpu"]
                    if rate > found.get(name, {}).get("rate", 0):
                        found[name] = {"rate": rate, **result}
            speeds = {name: round(one["rate"], 1) for name, one in found.items()}
            ratio = round(speeds["ours"] / speeds["theirs"], 2)
            rows.append({"views": views, "workers": workers, **speeds, "ratio": ratio, "details": found})
            print(
                f"{f'{views}, {workers} worker(s)':28}"
                + "".join(f"{v:12.1f}" for v in speeds.values())
                + f"{ratio:8.2f}"
            )
    return rows


def alone(pictures: list[bytes]) -> dict[str, float]:
    """CPU milliseconds of a picture for what no loader of whole JPEGs does without here: libjpeg-turbo's decoding, and
    torch's antialiased resize of bytes. The least of five passes."""
    spec = PictureSpec(size=224)
    decoded = [decode_image(data) for data in pictures]

    def least(run: Callable[[Any], Any], items: Sequence[Any]) -> float:
        seconds = []
        for _ in range(5):
            begun = time.process_time()
            for item in items:
                run(item)
            seconds.append(time.process_time() - begun)
        return round(1000 * min(seconds) / len(items), 3)

    return {
        "decode": least(decode_image, pictures),
        "train": least(lambda image: random_crop(image, spec, 0, (0.9, 1.0)), decoded),
        "evaluation": least(lambda image: fit(image, spec), decoded),
    }


def run_json(command: list[str]) -> dict[str, Any]:
    """The JSON of a process's last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def ours(folder: str, views: str, workers: int, normalized: bool) -> None:
    """One pass of clipkit's stream: bytes as training gets them, or normalized to float32 as the rival delivers."""
    import open_clip

    from clipkit.encoders.tokens import Tokenizer

    torch.set_num_threads(1)
    spec = PictureSpec(size=224)
    picture = (
        partial(read_augmented, spec=spec, augment=Augment()) if views == "train" else partial(read_view, spec=spec)
    )
    tokenizer = Tokenizer(open_clip.get_tokenizer("ViT-B-32"), 77, 0, "open_clip")
    shards = open_shards(folder)
    reader = PairReader(shards, picture, partial(read_tokens, tokenizer=tokenizer), 0)
    begun, before, seen = time.perf_counter(), cpu_seconds(), 0
    for batch in stream(reader, Order(shards.sizes, 0), BATCH, stop=SAMPLES // BATCH, workers=workers):
        if normalized:
            normalize(batch.images, spec)
        seen += len(batch.images)
    print(json.dumps({"samples": seen, "cpu": cpu_seconds() - before, "wall": time.perf_counter() - begun}))


def index_rate(root: Path) -> dict[str, int]:
    """Samples per CPU second of an index of 50,000 small samples, warm cache, plain and with PAX records."""
    rates = {}
    for name, time_of_change in (("plain", 0), ("pax", 1700000000.5)):
        path = root / f"small-{name}.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for n in range(50_000):
                for ending, size in (("jpg", 1500), ("txt", 40)):
                    info = tarfile.TarInfo(f"{n:09d}.{ending}")
                    info.size, info.mtime = size, time_of_change
                    tar.addfile(info, io.BytesIO(bytes(size)))
        path.read_bytes()
        seconds = []
        for _ in range(5):
            begun = time.process_time()
            index = build_index(path)
            seconds.append(time.process_time() - begun)
        rates[name] = round(len(index) / min(seconds))
        path.unlink()
    return rates


def resume_seconds(folder: Path, step: int) -> float:
    """Wall seconds from a checkpoint's integers to the first batch."""
    begun = time.perf_counter()
    shards = open_shards(folder)
    reader = PairReader(shards, partial(read_view, spec=PictureSpec()), _lengths, 0)
    next(iter(stream(reader, Order(shards.sizes, 0), BATCH, start=step, stop=step + 1)))
    return round(time.perf_counter() - begun, 3)


def over_http(folder: Path, root: Path) -> dict[str, Any]:
    """An epoch from a server on this machine that waits 20 ms before each answer."""
    sys.path.insert(0, str(HERE.parent / "tests" / "pairs"))
    from shard_server import serve

    os.environ["CLIPKIT_CACHE"] = str(root / "remote-cache")
    with serve(folder) as server:
        server.latency = 0.02
        begun = time.perf_counter()
        shards = open_shards(f"{server.url}/{{000000..{SAMPLES // PER_SHARD - 1:06d}}}.tar")
        opened = time.perf_counter() - begun
        server.asked.clear()
        reader = PairReader(shards, lambda s, i, seed: torch.tensor(len(s.read_picture(i))), _lengths, 0)
        begun = time.perf_counter()
        for _ in stream(reader, Order(shards.sizes, 0), BATCH, stop=SAMPLES // BATCH):
            pass
        return {
            "latency_ms": 20,
            "open_seconds": round(opened, 2),
            "epoch_seconds": round(time.perf_counter() - begun, 2),
            "samples": SAMPLES // BATCH * BATCH,
            "requests": len(server.gets()),
        }


def _lengths(chosen: list[tuple[int, int, str]]) -> torch.Tensor:
    return torch.tensor([len(text) for _, _, text in chosen])


def rival_python(root: Path) -> str:
    """The Python of a new environment with the rival in it, and this one's torch and torchvision versions."""
    from importlib import metadata

    subprocess.run([sys.executable, "-m", "venv", str(root / "rival")], check=True)
    python = str(root / "rival" / "bin" / "python")
    same = [f"{name}=={metadata.version(name)}" for name in ("torch", "torchvision", "pillow", "numpy")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *RIVAL, *same, "pandas", "braceexpand"], check=True)
    return python


if __name__ == "__main__":
    if sys.argv[1] == "--ours":
        ours(sys.argv[2], sys.argv[3], int(sys.argv[4]), "normalize" in sys.argv[5:])
    else:
        main(sys.argv[1], sys.argv[sys.argv.index("--python") + 1] if "--python" in sys.argv else None)
