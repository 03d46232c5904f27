"""open_clip's own loader over WebDataset shards, measured as ``stream.py`` measures clipkit's. Runs in an environment
with open_clip_torch 3.3.0 and webdataset 0.2.86; started by ``stream.py``.

    python stream_rival.py SHARDS SAMPLES train|evaluation WORKERS BATCH_SIZE
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from argparse import Namespace
from importlib import metadata

import open_clip
import torch
from open_clip.transform import image_transform
from open_clip_train.data import get_wds_dataset


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main(shards: str, samples: int, train: bool, workers: int, batch_size: int) -> None:
    """One pass; prints a line of JSON."""
    torch.set_num_threads(1)
    arguments = Namespace(
        train_data=shards, val_data=shards, train_num_samples=samples, val_num_samples=samples, seed=0, workers=workers,
        dataset_resampled=False, train_data_upsampling_factors=None, batch_size=batch_size, world_size=1,
    )  # fmt: skip
    transform = image_transform(224, is_train=train, mean=None, std=None)
    data = get_wds_dataset(arguments, transform, is_train=train, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    data.set_epoch(0)
    begun, before, seen = time.perf_counter(), cpu_seconds(), 0
    for images, _texts in data.dataloader:
        seen += len(images)
    wall = time.perf_counter() - begun
    del data  # its reading processes are kept for another epoch; their time counts once they have ended
    gc.collect()
    versions = {name: metadata.version(name) for name in ("open_clip_torch", "webdataset", "torch", "pillow")}
    print(json.dumps({"samples": seen, "cpu": cpu_seconds() - before, "wall": wall, **versions}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "train", int(sys.argv[4]), int(sys.argv[5]))
