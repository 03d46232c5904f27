"""What each method learns from pictures alone, in the same CPU time, and beside lightly's own loops.

    OMP_NUM_THREADS=1 python benchmarks/methods.py DATA

DATA holds class folders below ``train`` and ``val``. Every run is a process of its own, of as many steps as fit in
--minutes; finished ones of these settings are in methods.json and are not run again. The labels are looked at
afterwards only, but by supcon. lightly gets clipkit's network and initial weights, batch size, optimizer, schedule and
time, and brings its loader, its augmentations, its loss and its loop. What was learned is told by a linear probe,
nearest neighbours, and fine-tuning with 1 % of the labels beside the same network from random weights.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from isolated import in_process
from machine import write

OFF, TRIES = 0.08, 3  # share of the time that a run may be off, and runs until it is not: other work slows one down
METHODS = ("simclr", "moco", "byol", "supcon")
RIVALS = ("simclr", "moco", "byol")
# of the methods that do not need a large batch
MANY_STEPS: dict[str, Any] = {"batch_size": 32, "lr": 1e-3, "views": "moco-small"}
SETTINGS: dict[str, dict[str, Any]] = {
    "simclr": {},
    "moco": {**MANY_STEPS, "queue": 4096, "momentum": 0.99, "symmetric": True, "view_temperature": 0.1},
    "byol": {**MANY_STEPS, "momentum": 0.97, "predictor": 256, "wd": 0.1},
    "supcon": {},
}
COMMON: dict[str, Any] = {
    "image_model": "clipkit_small_resnet", "image_pretrained": False, "image_size": 32, "views": "simclr-small",
    "batch_size": 128, "lr": 2e-3, "wd": 1e-4, "projector_hidden": 256, "projector_dim": 128, "workers": 0,
    "keep_best": False, "warmup": 10, "log_every": 50,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=6.0, help="of CPU time, of a run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    given = parser.parse_args()
    path = Path(__file__).with_name("methods.json")
    known = json.loads(path.read_text()) if path.exists() else {}
    settings = json.loads(json.dumps({"all": COMMON, **SETTINGS}))
    same = known.get("minutes") == given.minutes and known.get("settings") == settings
    runs: dict[str, Any] = known.get("runs", {}) if same else {}
    base = {"data": str(given.data), "minutes": given.minutes}
    wanted = [("nothing", "pixels", 0), ("nothing", "random", 0)]
    for seed in given.seeds:
        for method in given.methods:
            wanted += [(method, "clipkit", seed)] + ([(method, "lightly", seed)] if method in RIVALS else [])
    for method, side, seed in wanted:
        name = f"{method}, {side}, {seed}"
        if name not in runs:
            found = in_process(__file__, {**base, "method": method, "side": side, "seed": seed})
            if found is None:
                print(f"{name}: failed")
                continue
            runs[name] = found
            write("methods", {"minutes": given.minutes, "settings": settings, "runs": runs})
        r = runs[name]
        spent = f"{r['steps']:5} steps {r['cpu_seconds']:7.0f} CPU s"
        few = f"  1 % of labels {r['few']:.1%} (from scratch {r['few_scratch']:.1%})" if "few" in r else ""
        print(f"{name:28} {spent}  linear {r['linear']:.1%}  knn {r['knn']:.1%}{few}", flush=True)
    print_table(runs)


def print_table(runs: dict[str, dict[str, Any]]) -> None:
    """Means over the seeds, with the standard deviation where there are several, as Markdown."""
    columns = {"cpu_seconds": "CPU s", "linear": "linear probe", "knn": "neighbours", "few": "1 % of labels",
               "few_scratch": "the same from scratch"}  # fmt: skip
    print("", f"| method | seeds | {' | '.join(columns.values())} |", "|---" * (2 + len(columns)) + "|", sep="\n")
    for kind in dict.fromkeys(name.rpartition(",")[0] for name in runs):
        of_kind = [r for name, r in runs.items() if name.rpartition(",")[0] == kind]
        cells = []
        for column in columns:
            values = [r[column] for r in of_kind if column in r]
            if not values:
                cells.append("")
            elif column == "cpu_seconds":
                cells.append(f"{statistics.mean(values):.0f}")
            else:
                spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{100 * statistics.mean(values):.1f}{spread}")
        print(f"| {kind} | {len(of_kind)} | {' | '.join(cells)} |")


def one(method: str, side: str, seed: int, data: str, minutes: float) -> dict[str, Any]:
    """One run, and what its network then knows."""
    import small_resnet  # noqa: F401 - timm knows it by name afterwards

    torch.set_num_threads(1)
    if side == "pixels":
        return {"steps": 0, "cpu_seconds": 0.0, **learned(lambda x: x.flatten(1), data)}
    if side == "random":
        return {"steps": 0, "cpu_seconds": 0.0, **learned(trunk_of(method, seed).eval(), data)}
    run = by_clipkit if side == "clipkit" else by_lightly
    budget = 60 * minutes
    steps = steps_in(budget, lambda n: run(method, seed, n, data))
    for _ in range(TRIES):
        start = time.process_time()
        trunk = run(method, seed, steps, data)
        spent = time.process_time() - start
        if abs(spent / budget - 1) < OFF:
            break
        steps = round(steps * budget / spent)
    used = {"steps": steps, "cpu_seconds": spent}
    return {**used, **learned(trunk.eval(), data), **with_few_labels(trunk, data)}


def config_of(method: str, seed: int, steps: int, data: str, output: str) -> Any:
    from clipkit.recipes import find_recipe

    settings = {**COMMON, **SETTINGS[method], "seed": seed, "max_steps": steps, "epochs": 1e6, "save_every": steps}
    return find_recipe(method).defaults.replace(**settings, train_data=f"{data}/train", output=output, overwrite=True)


def steps_in(seconds: float, run: Callable[[int], Any]) -> int:
    """Steps that ``run`` does in so many CPU seconds, its start and end included: two short runs tell, after one that
    pays for what a process does only once."""
    run(10)
    times: dict[int, float] = {}
    for n in (10, 110):
        start = time.process_time()
        run(n)
        times[n] = time.process_time() - start
    each = (times[110] - times[10]) / 100
    around = max(0.0, times[10] - 10 * each)
    return max(20, int((seconds - around) / each))


def by_clipkit(method: str, seed: int, steps: int, data: str) -> torch.nn.Module:
    import clipkit
    from clipkit.recipes import find_recipe

    with tempfile.TemporaryDirectory() as folder:
        run = clipkit.train(find_recipe(method), config=config_of(method, seed, steps, data, f"{folder}/run"))
        return clipkit.load(run, device="cpu").model.tower("image").trunk


def encoder_of(method: str, seed: int) -> Any:
    """clipkit's model before its first step: the initial weights of either side."""
    from clipkit.recipes import find_recipe

    method = "simclr" if method == "nothing" else method
    return find_recipe(method).encoders(config_of(method, seed, 1, "", ""))


def trunk_of(method: str, seed: int) -> torch.nn.Module:
    return encoder_of(method, seed).tower("image").trunk


def by_lightly(method: str, seed: int, steps: int, data: str) -> torch.nn.Module:
    """The loop of lightly's own examples and benchmarks (docs.lightly.ai, version 1.5), with this benchmark's network,
    schedule and settings."""
    import copy

    from lightly.data import LightlyDataset
    from lightly.loss import NegativeCosineSimilarity, NTXentLoss
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import SimCLRTransform
    from lightly.utils.scheduler import cosine_schedule

    from clipkit.pairs.views import FAMILIES
    from clipkit.training.optim import learning_rate

    torch.manual_seed(seed)
    config, start = config_of(method, seed, steps, data, ""), encoder_of(method, seed)
    trunk, heads = start.tower("image").trunk, start.two_views
    optim, settings = config.optim, heads.settings
    mean_std = {"mean": start.picture.mean, "std": start.picture.std}
    least = FAMILIES[config.data.views][0].scale[0]
    views = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0, min_scale=least, normalize=mean_std)
    images = LightlyDataset(f"{data}/train", transform=views)
    loader = torch.utils.data.DataLoader(
        images, batch_size=optim.batch_size, shuffle=True, drop_last=True, num_workers=0
    )
    modules = [trunk, heads.projector] + ([heads.predictor] if method == "byol" else [])
    optimizer = torch.optim.AdamW(
        [p for m in modules for p in m.parameters()], lr=optim.lr, weight_decay=optim.wd, betas=(0.9, 0.98), eps=1e-6
    )
    slow = [copy.deepcopy(m) for m in (trunk, heads.projector)] if settings.momentum is not None else []
    for module in slow:
        deactivate_requires_grad(module)
    bank = (settings.queue, settings.out) if settings.queue else 0
    contrast = NTXentLoss(temperature=settings.temperature, memory_bank_size=bank)
    done = 0
    while done < steps:
        for (first, second), *_ in loader:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(done, steps, optim.warmup, optim.lr)
            if slow:
                stays = cosine_schedule(done, steps, settings.momentum, 1) if settings.rising else settings.momentum
                update_momentum(trunk, slow[0], stays)
                update_momentum(heads.projector, slow[1], stays)
            queries = [heads.projector(trunk(x)) for x in (first, second)]
            if slow:
                with torch.no_grad():
                    keys = [slow[1](slow[0](x)) for x in (first, second)]
            if method == "simclr":
                loss = contrast(*queries)
            elif method == "moco":
                loss = 0.5 * (contrast(queries[0], keys[1]) + contrast(queries[1], keys[0]))
            else:
                guesses, distance = [heads.predictor(q) for q in queries], NegativeCosineSimilarity()
                loss = 0.5 * (distance(guesses[0], keys[1]) + distance(guesses[1], keys[0]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    return trunk


@torch.no_grad()
def learned(trunk: Callable[[torch.Tensor], torch.Tensor], data: str) -> dict[str, float]:
    """Accuracy of a linear probe and of the nearest neighbours on the held-out pictures."""
    from clipkit.evaluation import knn, linear_probe

    features, labels = {}, {}
    for split in ("train", "val"):
        pixels, labels[split] = pictures(f"{data}/{split}")
        features[split] = torch.cat([trunk(as_wanted(part)) for part in pixels.split(512)]).numpy()
    arrays = features["train"], labels["train"], features["val"], labels["val"]
    return {
        "linear": linear_probe(*arrays, bootstrap=0).top1.value,
        "knn": knn(*arrays, bootstrap=0).top1.value,
        "n_train": len(labels["train"]),
        "n_val": len(labels["val"]),
    }


def with_few_labels(trunk: torch.nn.Module, data: str) -> dict[str, float]:
    """Accuracy after fine-tuning with 1 % of the labels, and of the same network from random weights; mean of three
    draws of the labels."""
    import copy

    from small_resnet import SmallResNet

    from clipkit.evaluation import label_efficiency

    split = [part for name in ("train", "val") for part in pictures(f"{data}/{name}")]
    found = label_efficiency(lambda: copy.deepcopy(trunk), SmallResNet, *split, as_wanted, fractions=(0.01,)).points[0]
    return {"few": found.pretrained.value, "few_scratch": found.scratch.value, "n_few": found.n_labels}


def pictures(folder: str) -> tuple[torch.Tensor, list[str]]:
    """uint8 pictures (N, 3, 32, 32), and labels."""
    from clipkit.pairs import decode_image, fit

    files = sorted(p for p in Path(folder).glob("*/*") if p.is_file())
    pixels = torch.stack([fit(decode_image(p.read_bytes(), str(p)), picture_spec()) for p in files])
    return pixels, [p.parent.name for p in files]


def as_wanted(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 3, 32, 32) -> float32 as the network wants them."""
    from clipkit.pairs import normalize

    return normalize(pixels, picture_spec())


def picture_spec() -> Any:
    from clipkit.pairs import PictureSpec

    return PictureSpec(32, (0.5,) * 3, (0.25,) * 3)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        arguments = json.loads(sys.argv[2])
        import contextlib

        with contextlib.redirect_stdout(sys.stderr):
            result = one(**arguments)
        assert all(math.isfinite(v) for v in result.values())
        print(json.dumps(result))
    else:
        main()
