"""The fast decoder against each library's own preprocessing: how far apart, and how much faster.

    python benchmarks/decode.py FOLDER

FOLDER holds pictures, best photographs at their original size. Prints pixel differences (of 255), the cosine of the
starter's embeddings by the two ways, and CPU milliseconds a picture.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from machine import write

from clipkit.encoders.starter import starter_encoder
from clipkit.inference import Aligner
from clipkit.inference.pictures import to_pixels
from clipkit.inputs import picture_paths


def main(folder: str) -> None:
    """Measure on the pictures of ``folder``."""
    import torch

    torch.set_num_threads(1)
    model = Aligner(starter_encoder(), "starter")
    spec = model.model.picture
    paths = picture_paths([folder])
    std = torch.tensor(spec.std).view(3, 1, 1)
    seconds: dict[str, float] = {}
    pixels: dict[str, list[torch.Tensor]] = {}
    for mode in ("fast", "reference"):
        start = time.process_time()
        pixels[mode] = [to_pixels(Path(p), spec, mode, False) for p in paths]  # type: ignore[arg-type]
        seconds[mode] = (time.process_time() - start) / len(paths)
    differences = [((a - b) * std * 255).abs() for a, b in zip(pixels["fast"], pixels["reference"], strict=True)]
    one, other = (model.encode_image(torch.stack(pixels[mode])) for mode in ("fast", "reference"))
    cosine = (one * other).sum(axis=1)
    figures = {
        "pictures": len(paths),
        "pixel_difference_mean": float(np.mean([d.mean() for d in differences])),
        "pixel_difference_max": float(max(d.max() for d in differences)),
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "cpu_ms_fast": 1000 * seconds["fast"],
        "cpu_ms_reference": 1000 * seconds["reference"],
    }
    for name, value in figures.items():
        print(f"{name:24}{value:.5g}")
    write("decode", figures)


if __name__ == "__main__":
    main(sys.argv[1])
