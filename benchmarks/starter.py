"""The starter over three seeds: what the head learns about drawings it has never seen.

    python benchmarks/starter.py

Trains in a temporary folder (the encodings are cached after the first run) and prints mean and range over the seeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import write

SEEDS = (0, 1, 2)


def main() -> None:
    """Train once per seed, read each run's evaluation."""
    script = Path(__file__).parent.parent / "clipkit" / "train.py"
    runs, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            output = Path(folder) / str(seed)
            start = time.perf_counter()
            command = [sys.executable, str(script), "--recipe", "starter", "--seed", str(seed), "--output", str(output)]
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
            runs.append(json.loads((output / "evaluation.json").read_text()))
    figures: dict[str, object] = {"seeds": list(SEEDS), "seconds": [round(s, 1) for s in seconds]}
    for name, path in {
        "image_to_text@1": ("retrieval", "image_to_text", "1"),
        "text_to_image@1": ("retrieval", "text_to_image", "1"),
        "zero_shot_mean_per_class": ("zero_shot", "mean_per_class"),
    }.items():
        kind, *rest = path
        trained = [_at(run[kind], rest) for run in runs]
        before = _at(runs[0][kind]["baseline"], rest)
        figures[name] = {"trained": trained, "before_training": before}
        print(f"{name:26} trained {min(trained):.1%} to {max(trained):.1%}, before training {before:.1%}")
    write("starter", figures)


def _at(report: dict, path: list[str]) -> float:
    for name in path:
        report = report[name]
    return float(report["value"])  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
